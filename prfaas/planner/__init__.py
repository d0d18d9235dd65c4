"""Throughput model, profiles, threshold and allocation. Pure; no torch."""
