"""Admission, chunked prefill and continuous batching. Pure; no torch."""
