"""How long to wait before a worker that died is started again. Pure: the pool measures, this decides."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling delays for a worker that keeps failing, and a fresh start for one that had been well. Seconds."""

    base_s: float = 0.2
    cap_s: float = 10.0
    healthy_s: float = 20.0  # a worker that ran this long did not fail because of how it was started

    def failures_after(self, failures: int, ran_s: float) -> int:
        """Failures in a row, counting the one that just ended a run of `ran_s` seconds."""
        return 1 if ran_s >= self.healthy_s else failures + 1

    def delay_s(self, failures: int) -> float:
        """Seconds to wait before the next start, after `failures` (at least 1) failures in a row."""
        doublings = min(failures - 1, 30)
        return min(self.cap_s, self.base_s * float(2**doublings))
