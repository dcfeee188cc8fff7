"""The table of items: its attributes by columns, filters over them, and the masks that these make."""
