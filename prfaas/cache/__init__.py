"""Block pool, prefix index and cache groups. No torch."""
