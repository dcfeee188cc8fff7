"""The error of an export that is refused."""

from __future__ import annotations


class ExportError(Exception):
    """The export was refused; the message says what was wrong, what was expected and what to do."""
