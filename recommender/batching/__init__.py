"""Admits callers, forms batches of them, runs these on an engine, and answers each caller once."""
