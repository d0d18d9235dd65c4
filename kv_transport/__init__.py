"""Carries a prefill's KV cache between datacenters."""
