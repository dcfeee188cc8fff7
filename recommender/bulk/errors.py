"""An error that stops a bulk job; its message says what to change."""

from __future__ import annotations

from recommender.errors import StartError


class BulkError(StartError):
    """The job cannot start or continue because of its input, its options, its output or the model."""
