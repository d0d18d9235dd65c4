"""A prefill's report with everything in it, for tests that pass one through."""

from __future__ import annotations

from typing import Any

from prfaas.types import PrefillReport, Route, WorkerId


def prefill_report(**changes: Any) -> PrefillReport:
    """A remote prefill after one failed rung, no two durations of it alike."""
    values: dict[str, Any] = {
        "route": Route.REMOTE,
        "worker_id": WorkerId("prefill-0"),
        "cached_tokens": 3,
        "queue_s": 0.001,
        "prefill_s": 0.002,
        "wire_s": 0.003,
        "commit_s": 0.0005,
        "kv_bytes": 123_456,
        "attempts": ("prefill-1:transfer_broken",),
    }
    return PrefillReport(**(values | changes))
