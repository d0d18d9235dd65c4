"""The only place that reads time. Deciding code takes `now_s` as an argument; loops hold a `Clock`."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic time source in seconds. Differences are meaningful, absolute values are not."""

    def now_s(self) -> float:
        """Seconds since an arbitrary origin; never goes backwards."""
        ...


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_s(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that moves only when told to, for tests and for the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        return self._now_s

    def advance(self, by_s: float) -> None:
        """Move forward by `by_s` seconds; raises ValueError on a negative step."""
        if by_s < 0:
            raise ValueError(f"time cannot go back by {-by_s} s")
        self._now_s += by_s


def unix_time_s() -> float:
    """Wall-clock seconds since 1970, for timestamps shown to people; never for measuring durations."""
    return time.time()
