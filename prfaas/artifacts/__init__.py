"""Model files: the demo model, hub ids, local directories and GGUF files, resolved to a path. No torch."""
