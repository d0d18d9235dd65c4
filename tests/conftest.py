"""What all tests share: the order in which they run."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start Ray run first: Ray forks its servers from this process, which is safest before other tests have
    loaded torch and started gRPC's threads."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is None)
