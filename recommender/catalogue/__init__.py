"""Facts about items: attributes, filters over them, hidden items and new items."""
