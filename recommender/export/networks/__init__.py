"""The networks that can be exported: the built-in ones, and loading one by name."""
