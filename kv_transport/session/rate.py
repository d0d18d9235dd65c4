"""Rates of byte streams: how fast one has been, and how fast one may be. Time is an argument."""

from __future__ import annotations

import math


class RateMeter:
    """Bytes per second while busy: an average over the last `window_s` of busy time, older bytes fading out.

    Gaps longer than `idle_s` do not count unless bytes waited all the while, so that the figure says what the path carried, not
    how often it was used.
    """

    def __init__(self, window_s: float = 2.0, idle_s: float = 0.5) -> None:
        self._window_s = window_s
        self._idle_s = idle_s
        self._bytes = 0.0
        self._busy_s = 0.0
        self._last_s: float | None = None

    def add(self, num_bytes: int, now_s: float, *, waited: bool = False) -> None:
        """Record bytes that moved between the last call and `now_s`; after a gap they only set the start, except where some
        `waited` since that call: on a slow path a chunk takes longer than any gap."""
        last_s, self._last_s = self._last_s, now_s
        if last_s is None or (now_s - last_s > self._idle_s and not waited):
            return
        gap_s = now_s - last_s
        fade = math.exp(-gap_s / self._window_s)
        self._bytes = self._bytes * fade + num_bytes
        self._busy_s = self._busy_s * fade + gap_s

    @property
    def last_s(self) -> float | None:
        """When bytes were last recorded."""
        return self._last_s

    @property
    def bytes_per_s(self) -> float:
        """0 until enough has been seen to tell."""
        return self._bytes / self._busy_s if self._busy_s > 0.01 else 0.0


class TokenBucket:
    """A budget in bytes per second. Taking may overdraw once; the debt is waited off, so the long-run rate is exact."""

    def __init__(self, bytes_per_s: float, burst_s: float = 0.02) -> None:
        self._rate = bytes_per_s
        self._burst = bytes_per_s * burst_s
        self._balance = self._burst
        self._at_s: float | None = None

    def ready_in_s(self, now_s: float) -> float:
        """Seconds until something may be taken; 0 when now."""
        self._refill(now_s)
        return 0.0 if self._balance > 0 else (1.0 - self._balance) / self._rate

    def take(self, num_bytes: int, now_s: float) -> None:
        self._refill(now_s)
        self._balance -= num_bytes

    def _refill(self, now_s: float) -> None:
        if self._at_s is not None:
            self._balance = min(self._burst, self._balance + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
