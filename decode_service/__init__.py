"""The decode door: lands KV caches and streams tokens."""
