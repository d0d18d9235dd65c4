"""Worker pools: local processes and Ray."""
