"""Rows that carry masks: which of the ways to their best allowed items each takes."""
