"""CatalogueService as plain async functions: read a message, have the change kept, write the reply."""
