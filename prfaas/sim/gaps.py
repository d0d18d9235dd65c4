"""A weighted histogram of durations, for quantities with too many samples to keep. Resolution 0.1 ms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

RESOLUTION_S = 1e-4


@dataclass(slots=True)
class Histogram:
    """Counts by duration, rounded to `RESOLUTION_S`."""

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, duration_s: float, times: int = 1) -> None:
        if times > 0:
            self.counts[round(duration_s / RESOLUTION_S)] += times

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def mean_s(self) -> float:
        return sum(k * n for k, n in self.counts.items()) * RESOLUTION_S / self.total if self.total else 0.0

    def percentile_s(self, q: float) -> float:
        """Smallest recorded duration that a share `q` does not exceed; 0 when empty."""
        left = q * self.total
        for key in sorted(self.counts):
            left -= self.counts[key]
            if left <= 0:
                return key * RESOLUTION_S
        return max(self.counts, default=0) * RESOLUTION_S
