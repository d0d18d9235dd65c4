"""A shared wide-area link in virtual time: rate, round trip, loss, contention, brown-outs and outages.

Active flows share the usable rate equally (what many long TCP flows approach), each capped by what loss allows its
lanes. A flow is fed while prefill computes: `offer` adds bytes to it, and it finishes when every offered byte has been
carried and the flow is closed for more. Rates in bytes/s, times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from prfaas.sim.kernel import Kernel, Timer

MSS_BYTES = 1460.0
MATHIS_CONSTANT = math.sqrt(1.5)
NEAR_ZERO_BYTES = 1.0  # the last byte of a flow takes less time than the clock resolves


def loss_capped_rate(rtt_s: float, loss_ratio: float, lanes: int) -> float:
    """What `lanes` TCP connections carry together under random loss: lanes * MSS / RTT * sqrt(3/2) / sqrt(loss)
    (Mathis, Semke, Mahdavi and Ott, 1997). Infinite without loss."""
    if loss_ratio <= 0 or rtt_s <= 0:
        return math.inf
    return lanes * MSS_BYTES / rtt_s * MATHIS_CONSTANT / math.sqrt(loss_ratio)


@dataclass(slots=True, eq=False)
class Flow:
    """One transfer on a link."""

    on_done: Callable[[], None]
    pending_bytes: float = 0.0
    carried_bytes: float = 0.0
    closed: bool = False
    rate: float = 0.0


@dataclass(slots=True)
class LinkUse:
    """What a link did so far."""

    carried_bytes: float = 0.0
    busy_s: float = 0.0
    capacity_bytes: float = 0.0


@dataclass(slots=True, eq=False)
class SimLink:
    """A link under a kernel. Change `set_conditions` at any time; flows adapt from that instant."""

    kernel: Kernel
    capacity_bytes_per_s: float
    rtt_s: float = 0.0
    loss_ratio: float = 0.0
    lanes: int = 8
    use: LinkUse = field(default_factory=LinkUse)
    nominal_bytes_per_s: float = field(init=False)  # what it was built with: what operators and routers believe
    _flows: list[Flow] = field(default_factory=list)
    _since_s: float = 0.0
    _timer: Timer | None = None

    def __post_init__(self) -> None:
        self.nominal_bytes_per_s = self.capacity_bytes_per_s

    @property
    def up(self) -> bool:
        return self.capacity_bytes_per_s > 0

    def open(self, on_done: Callable[[], None]) -> Flow:
        """Start a flow without bytes. `on_done` runs half a round trip after its last byte left."""
        flow = Flow(on_done)
        self.settle()
        self._flows.append(flow)
        return flow

    def offer(self, flow: Flow, num_bytes: float, *, last: bool = False) -> None:
        """Add bytes to a flow; with `last`, no more will come."""
        self.settle()
        flow.pending_bytes += num_bytes
        flow.closed = flow.closed or last
        self._reschedule()

    def abort(self, flow: Flow) -> None:
        """Drop a flow; its callback never runs."""
        self.settle()
        if flow in self._flows:
            self._flows.remove(flow)
        self._reschedule()

    def set_conditions(
        self, *, capacity_bytes_per_s: float | None = None, rtt_s: float | None = None, loss_ratio: float | None = None
    ) -> None:
        """Brown-out, outage (capacity 0) or recovery."""
        self.settle()
        if capacity_bytes_per_s is not None:
            self.capacity_bytes_per_s = capacity_bytes_per_s
        if rtt_s is not None:
            self.rtt_s = rtt_s
        if loss_ratio is not None:
            self.loss_ratio = loss_ratio
        self._reschedule()

    @property
    def queued_bytes(self) -> float:
        self.settle()
        return sum(f.pending_bytes for f in self._flows)

    @property
    def active_flows(self) -> int:
        return len(self._flows)

    @property
    def current_rate(self) -> float:
        """Bytes/s carried right now."""
        return sum(f.rate for f in self._flows)

    def settle(self) -> None:
        """Account for what the flows carried since the last change."""
        now = self.kernel.now_s()
        elapsed = now - self._since_s
        self._since_s = now
        if elapsed <= 0:
            return
        moved = 0.0
        for flow in self._flows:
            step = min(flow.pending_bytes, flow.rate * elapsed)
            flow.pending_bytes -= step
            flow.carried_bytes += step
            moved += step
        self.use.carried_bytes += moved
        self.use.capacity_bytes += self.capacity_bytes_per_s * elapsed
        self.use.busy_s += elapsed if moved > 0 else 0.0

    def _reschedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for flow in [f for f in self._flows if f.closed and f.pending_bytes <= NEAR_ZERO_BYTES]:
            self._flows.remove(flow)
            self.kernel.after(self.rtt_s / 2, flow.on_done)
        sending = [f for f in self._flows if f.pending_bytes > NEAR_ZERO_BYTES]
        for flow in self._flows:
            flow.rate = 0.0
        if not sending:
            return
        share = min(self.capacity_bytes_per_s / len(sending), loss_capped_rate(self.rtt_s, self.loss_ratio, self.lanes))
        if share <= 0:
            return
        for flow in sending:
            flow.rate = share
        soonest = min(f.pending_bytes for f in sending) / share
        self._timer = self.kernel.after(soonest, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.settle()
        self._reschedule()
