"""Which items nobody gets: lists of keys that are followed, and what they hide of each version."""
