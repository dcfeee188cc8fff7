"""A version of a model: where it comes from, and whether it may be served."""
