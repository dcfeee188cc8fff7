"""Who waits, who is let in, what the next batch is, and what it costs."""
