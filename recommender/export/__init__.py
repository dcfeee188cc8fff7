"""Torch networks to model files."""
