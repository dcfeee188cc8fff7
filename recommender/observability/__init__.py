"""Name every metric once, read what was counted, send it."""
