"""What a message means: message to query, ranking to reply, error to status."""
