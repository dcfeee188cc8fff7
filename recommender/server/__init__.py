"""The life of processes: listen, load, ready, drain, exit code; several processes."""
