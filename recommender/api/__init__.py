"""Translate messages: message to query, ranking to reply, error to status."""
