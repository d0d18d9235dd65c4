"""The engine: plans steps, runs them, owns the cache. Importing this package does not import torch."""
