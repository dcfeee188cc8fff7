"""Items that calls add to a model's catalogue: the journal that keeps them, and those that each version ranks."""
