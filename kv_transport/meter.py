"""The transport's counters: for leak audits and for Prometheus. Decides nothing."""

from __future__ import annotations

from prfaas import metrics
from prfaas.metrics import MetricSet

SEND = "send"
RECEIVE = "receive"


class TransferMeter:
    """One direction's accounting. `metrics` may be None in tests and tools that export nothing."""

    def __init__(self, direction: str, metric_set: MetricSet | None) -> None:
        self._direction = direction
        self._metrics = metric_set
        self.active = 0
        self.lanes = 0
        self.buffered_bytes = 0
        self.resent = 0  # chunks that were sent again

    def began(self) -> None:
        self.active += 1
        if self._metrics is not None:
            self._metrics.inc(metrics.TRANSFERS_ACTIVE, direction=self._direction)

    def ended(self, duration_s: float, failure: str | None) -> None:
        """`failure` is an error code, None for a committed transfer."""
        self.active -= 1
        if self._metrics is None:
            return
        self._metrics.inc(metrics.TRANSFERS_ACTIVE, -1, direction=self._direction)
        if failure is None:
            self._metrics.observe(metrics.TRANSFER_SECONDS, duration_s, direction=self._direction)
        else:
            self._metrics.inc(metrics.TRANSFER_FAILURES, direction=self._direction, reason=failure)

    def moved(self, wire_bytes: int, codec: str) -> None:
        if self._metrics is not None:
            self._metrics.inc(metrics.TRANSFER_BYTES, wire_bytes, direction=self._direction, codec=codec)

    def resumed(self) -> None:
        if self._metrics is not None:
            self._metrics.inc(metrics.TRANSFER_RESUMES)

    def leases(self, count: int) -> None:
        if self._metrics is not None:
            self._metrics.set(metrics.LEASES_ACTIVE, count)

    def counters(self) -> dict[str, float]:
        """active_transfers, buffered_bytes, open_lanes."""
        return {
            "active_transfers": float(self.active),
            "buffered_bytes": float(self.buffered_bytes),
            "open_lanes": float(self.lanes),
        }
