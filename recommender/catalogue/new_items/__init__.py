"""Items that calls add beside a model's catalogue: kept in the journal, and what of them each version ranks."""
