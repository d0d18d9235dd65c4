"""How many lanes a path needs. Pure: measurements in, a number out.

One TCP connection fills a clean path; under loss each connection carries about 1.2 * MSS / (RTT * sqrt(p)) whatever
the link's size (Mathis et al., 1997), and throughput grows with the number of connections until the link is full.
So where loss is known the tuner goes to the limit at once. Where it is not known it climbs: it doubles the lanes while
that makes transfers faster. In both cases it comes back down when fewer lanes turn out to do as well.
"""

from __future__ import annotations

LOCAL_RTT_S = 0.002  # below this one connection recovers from loss within a few milliseconds
LOSSY = 2e-4  # above this share of retransmitted bytes one connection cannot fill a long path
GAIN = 1.15  # a doubling that brings less than this is not worth its connections
REVISIT_TRANSFERS = 32  # after so many transfers the neighbouring lane counts are tried again


class LaneTuner:
    """The lane count of one path. Counts are powers of two up to `max_lanes`; `fixed` > 0 switches tuning off."""

    def __init__(self, *, max_lanes: int, fixed: int = 0) -> None:
        self._max_lanes = max_lanes
        self._fixed = min(fixed, max_lanes)
        self._lanes: int | None = None
        self._best: dict[int, float] = {}  # lanes -> smoothed goodput, bytes/s
        self._since_best = 0
        self._met_loss = False

    def wanted(self, total_bytes: int, chunk_bytes: int, rtt_s: float, loss_ratio: float = 0.0) -> int:
        """Lanes for a transfer of `total_bytes`. Unknown `rtt_s` and `loss_ratio` are 0; never more lanes than chunks."""
        if self._fixed:
            return self._fixed
        if self._lanes is None or (self._lanes == 1 and rtt_s > LOCAL_RTT_S and not self._best):
            self._lanes = self._start(rtt_s)
        if loss_ratio > LOSSY and rtt_s > LOCAL_RTT_S and not self._met_loss:
            self._met_loss = True
            self._lanes = self._max_lanes
        return max(1, min(self._lanes, total_bytes // max(1, chunk_bytes)))

    def observe(self, lanes: int, goodput_bytes_per_s: float, rtt_s: float) -> None:
        """A transfer long enough to tell, over a path that had nothing else to carry, reached this goodput."""
        if self._fixed or goodput_bytes_per_s <= 0 or lanes != self._lanes:
            return
        known = self._best.get(lanes)
        self._best[lanes] = goodput_bytes_per_s if known is None else 0.6 * known + 0.4 * goodput_bytes_per_s
        self._lanes = self._next(lanes, rtt_s)

    def _start(self, rtt_s: float) -> int:
        return min(4, self._max_lanes) if rtt_s > LOCAL_RTT_S else 1

    def _next(self, lanes: int, rtt_s: float) -> int:
        here = self._best[lanes]
        half, double = lanes // 2, lanes * 2
        if half >= 1 and half in self._best and self._best[half] * GAIN >= here:
            return half
        if double <= self._max_lanes and rtt_s > LOCAL_RTT_S:
            ahead = self._best.get(double)
            if ahead is None or ahead > here * GAIN:
                return double
        self._since_best += 1
        if self._since_best >= REVISIT_TRANSFERS:
            self._since_best = 0
            self._best = {lanes: here}
            if half >= 1 and rtt_s > LOCAL_RTT_S:
                return half
        return lanes
