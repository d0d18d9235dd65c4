"""What all tests share: the order in which they run, and how their threads wait."""

from __future__ import annotations

import os

import pytest

# As workers set it: processes share the machine's cores in these tests, too. Read by OpenMP once, when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run first: Ray forks its servers from this process, which is safest before other tests have
    loaded torch and started gRPC's threads."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
