"""A gRPC service that turns a user's history of items into the top-K next items."""
