"""What a version of a model is, where it comes from, and whether it may serve."""
