"""Networks with the numbers of trained ones: rewritten for histories of any length, padded on the right."""
