"""Where versions come from: a file, a folder, a registry."""
