"""The prefill door of a worker: computes a prompt's cache and offers it, range by range, to a transfer."""
