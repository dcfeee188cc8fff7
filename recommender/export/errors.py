"""What an export refuses, as one error."""

from __future__ import annotations


class ExportError(Exception):
    """The export was refused; the message says what was wrong, what was expected and what to do."""
