"""The part of a model file that ranks: scores, blocks, the coarse table, and selection."""
