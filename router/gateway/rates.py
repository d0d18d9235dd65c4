"""A token bucket that may go into debt: what a request costs is known only when it has ended. Pure, given `now_s`."""

from __future__ import annotations


class Bucket:
    """Refills evenly to a minute's worth. Spending below zero is allowed; starting below zero is not."""

    def __init__(self, per_minute: float, now_s: float) -> None:
        self._per_s = per_minute / 60
        self._full = per_minute
        self._level = per_minute
        self._at_s = now_s

    def wait_s(self, need: float, now_s: float) -> float:
        """Seconds until `need` is there (at most a full bucket can be asked for); 0 if it is there now."""
        self._refill(now_s)
        missing = min(need, self._full) - self._level
        return max(0.0, missing / self._per_s)

    def spend(self, amount: float, now_s: float) -> None:
        """Take `amount`, into debt if need be."""
        self._refill(now_s)
        self._level -= amount

    def _refill(self, now_s: float) -> None:
        self._level = min(self._full, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
