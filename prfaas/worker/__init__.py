"""A worker process: one engine, one or two doors, and its registration with the router."""
