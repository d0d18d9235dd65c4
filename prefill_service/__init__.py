"""The prefill door: runs prompts and offers their KV cache as a stream."""
