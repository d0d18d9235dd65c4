"""A shared wide-area link in virtual time: rate, round trip, loss, contention, brown-outs and outages.

Active flows share the usable rate equally (what many long TCP flows approach), each capped by what loss allows its
lanes. A flow is fed while prefill computes: `offer` adds bytes to it, and it finishes when every offered byte has been
carried and the flow is closed for more. Rates in bytes/s, times in seconds.

Because all that send get the same rate, one number says what each of them has been given: the *service*, the bytes that a
flow would have sent had it never paused. A flow knows the service at which it will have nothing left, and the link looks
only at the flow that is next to get there, so that an event costs the same with ten flows as with a thousand.
"""

from __future__ import annotations

import heapq
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
    """One transfer on a link. `dry_at`: while it sends, the link's service at which nothing is pending."""

    link: SimLink
    on_done: Callable[[], None]
    offered_bytes: float = 0.0
    closed: bool = False
    sending: bool = False
    dry_at: float = 0.0

    @property
    def pending_bytes(self) -> float:
        """Offered and not yet carried."""
        return max(0.0, self.dry_at - self.link.service_bytes()) if self.sending else 0.0

    @property
    def carried_bytes(self) -> float:
        return self.offered_bytes - self.pending_bytes


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
    _service_bytes: float = 0.0
    _share: float = 0.0  # bytes/s of each flow that sends
    _num_sending: int = 0
    _order: int = 0
    _dry: list[tuple[float, int, Flow]] = field(default_factory=list)  # by `dry_at`; entries of other values are void
    _since_s: float = 0.0
    _timer: Timer | None = None

    def __post_init__(self) -> None:
        self.nominal_bytes_per_s = self.capacity_bytes_per_s

    @property
    def up(self) -> bool:
        return self.capacity_bytes_per_s > 0

    def open(self, on_done: Callable[[], None]) -> Flow:
        """Start a flow without bytes. `on_done` runs half a round trip after its last byte left."""
        return Flow(self, on_done)

    def offer(self, flow: Flow, num_bytes: float, *, last: bool = False) -> None:
        """Add bytes to a flow; with `last`, no more will come."""
        self.settle()
        flow.closed = flow.closed or last
        flow.offered_bytes += num_bytes
        if num_bytes > 0:
            if not flow.sending:
                flow.sending, flow.dry_at = True, self._service_bytes
                self._num_sending += 1
            flow.dry_at += num_bytes
            self._order += 1
            heapq.heappush(self._dry, (flow.dry_at, self._order, flow))
        elif flow.closed and not flow.sending:
            self._done(flow)
        self._reschedule()

    def abort(self, flow: Flow) -> None:
        """Drop a flow; its callback never runs unless its last byte has left already."""
        self.settle()
        if flow.sending:
            flow.offered_bytes = flow.carried_bytes
            self._stop(flow)
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

    def service_bytes(self) -> float:
        """Bytes that every flow which sends has been given since some fixed time."""
        self.settle()
        return self._service_bytes

    def settle(self) -> None:
        """Account for what the flows carried since the last change."""
        now = self.kernel.now_s()
        elapsed = now - self._since_s
        if elapsed <= 0:
            return
        self._since_s = now
        self.use.capacity_bytes += self.capacity_bytes_per_s * elapsed
        if self._share > 0:
            step = self._share * elapsed
            self._service_bytes += step
            self.use.carried_bytes += step * self._num_sending
            self.use.busy_s += elapsed

    def _reschedule(self) -> None:
        """End what is through, share the rate among the rest, and look again when the next flow has nothing left."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._dry:
            dry_at, _, flow = self._dry[0]
            current = flow.sending and flow.dry_at == dry_at
            if current and dry_at - self._service_bytes > NEAR_ZERO_BYTES:
                break
            heapq.heappop(self._dry)
            if current:
                self._stop(flow)
                if flow.closed:
                    self._done(flow)
        if not self._num_sending:
            self._share = self._service_bytes = 0.0
            return
        self._share = min(
            self.capacity_bytes_per_s / self._num_sending, loss_capped_rate(self.rtt_s, self.loss_ratio, self.lanes)
        )
        if self._share > 0:
            self._timer = self.kernel.after((self._dry[0][0] - self._service_bytes) / self._share, self._on_timer)

    def _stop(self, flow: Flow) -> None:
        flow.sending = False
        self._num_sending -= 1

    def _done(self, flow: Flow) -> None:
        self.kernel.after(self.rtt_s / 2, flow.on_done)

    def _on_timer(self) -> None:
        self._timer = None
        self.settle()
        self._reschedule()
