"""Bulk scoring: files or tables of histories, without a server."""

from recommender.bulk.scorer import Scorer

__all__ = ["Scorer"]
