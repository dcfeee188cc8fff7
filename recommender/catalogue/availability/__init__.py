"""Hidden items: followed lists of keys, and the mask of each version."""
