"""The decode door of a worker: gets a prompt's cache from wherever the router decided, then streams tokens."""
