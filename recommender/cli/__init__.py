"""The command line: one module a command; `clients` has those that speak to a running server."""
