"""Scripts that run in a library's own environment: one interpreter reads the model, another writes the file.

`common` and one library's module are joined to one file, so both hold to the standard library, NumPy and that library,
and to Python 3.10.
"""
