"""The command line: one module a command; `clients` has those that call a running server."""
