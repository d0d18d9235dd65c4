"""What is left of a request's time, measured on this machine's clock from the moment the request came in."""

from __future__ import annotations

from prfaas.clock import Clock


class Deadline:
    """`after_s` seconds from now; None never ends."""

    def __init__(self, clock: Clock, after_s: float | None) -> None:
        self._clock = clock
        self._end_s = None if after_s is None else clock.now_s() + after_s

    def left_s(self) -> float | None:
        """Seconds left, at least 0, or None without a deadline."""
        return None if self._end_s is None else max(0.0, self._end_s - self._clock.now_s())

    def at_most_s(self, limit_s: float) -> float:
        """The shorter of `limit_s` and what is left."""
        left_s = self.left_s()
        return limit_s if left_s is None else min(limit_s, left_s)
