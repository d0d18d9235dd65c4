"""Measurements behind the project's claims, one script each. `python -m benchmarks.NAME --help`."""
