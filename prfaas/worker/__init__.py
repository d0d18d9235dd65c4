"""A worker process: one engine, two doors, and the conversation with the router."""
