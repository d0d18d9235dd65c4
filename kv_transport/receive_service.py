"""What every receiving transport shares: running fetches, booking them, telling senders to release. No sockets."""

from __future__ import annotations

import asyncio

from kv_transport.api import FetchResult, PrefillOrder, Sink
from kv_transport.gate import TurnGate
from kv_transport.incoming import FetchLimits, Incoming
from kv_transport.links import FetchMonitor, Paths
from kv_transport.messages import Finish
from kv_transport.meter import RECEIVE, TransferMeter
from kv_transport.session.send_order import SendBudget, SendOrder
from kv_transport.wire import SenderPort
from prfaas.clock import Clock
from prfaas.config import TransportSettings
from prfaas.errors import Draining, FingerprintMismatch, InvalidRequest, PrfaasError, QueueFull, WorkerUnreachable
from prfaas.metrics import MetricSet
from prfaas.types import LinkView, SiteId

# The sender has nothing to release, or cannot be told.
REFUSED = frozenset(e.code for e in (WorkerUnreachable, FingerprintMismatch, QueueFull, Draining, InvalidRequest))
LINK_BOUND_SHARE = 0.5  # of a fetch spent after computing had ended: then the link set its speed


class ReceiveService:
    """Fetches of one process. Used on one event loop."""

    def __init__(self, settings: TransportSettings, site: SiteId, clock: Clock, metrics: MetricSet | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._meter = TransferMeter(RECEIVE, metrics)
        self._paths = Paths(
            site,
            clock,
            max_lanes=settings.max_lanes,
            fixed_lanes=settings.lanes,
            capacity_bytes_per_s=settings.link_capacity_bytes_per_s,
        )
        self._limits = FetchLimits(settings.progress_timeout_s, settings.max_resumes, settings.max_lanes)
        self._fetches: set[Incoming] = set()
        budget = SendBudget(own_site=site, turns=1, in_flight_bytes=settings.send_buffer_bytes)
        self._turns = TurnGate(SendOrder(budget), clock)  # whose frame is landed next
        self._idle = asyncio.Event()
        self._finishing: set[asyncio.Task[None]] = set()

    @property
    def paths(self) -> Paths:
        return self._paths

    async def fetch(self, order: PrefillOrder, sender: SenderPort, sink: Sink) -> FetchResult:
        """Run one transfer from `sender` into `sink`. Raises as PrefillTransport.fetch."""
        monitor = FetchMonitor(self._paths, self._meter, self._clock, self._settings.chunk_bytes)
        incoming = Incoming(order, sender, sink, limits=self._limits, monitor=monitor, clock=self._clock, turns=self._turns)
        began_s = self._clock.now_s()
        self._fetches.add(incoming)
        self._idle.clear()
        self._meter.began()
        failure: str | None = "cancelled"
        bound = False
        try:
            result = await incoming.run()
            failure, bound = None, result.wire_s > LINK_BOUND_SHARE * (self._clock.now_s() - began_s)
        except PrfaasError as error:
            failure = error.code
            raise
        finally:
            monitor.ended(link_bound=bound)
            self._meter.ended(self._clock.now_s() - began_s, failure)
            if failure not in REFUSED:
                self._finish_later(sender, incoming.finish(committed=failure is None, reason=failure or ""), monitor)
            self._fetches.discard(incoming)
            if not self._fetches:
                self._idle.set()
        return result

    def links(self) -> tuple[LinkView, ...]:
        """See PrefillTransport.links."""
        return self._paths.views()

    def counters(self) -> dict[str, float]:
        """See PrefillTransport.counters."""
        return {**self._meter.counters(), "buffered_bytes": float(self._turns.held_bytes)}

    async def close(self) -> None:
        """End every fetch with RequestCancelled; releases are still told to the senders."""
        for incoming in self._fetches:
            incoming.stop()
        if self._fetches:
            await self._idle.wait()
        await asyncio.gather(*self._finishing, return_exceptions=True)

    def _finish_later(self, sender: SenderPort, finish: Finish, monitor: FetchMonitor) -> None:
        """The release is not worth a round trip of somebody's time to first token, so it is sent in the background."""
        task = asyncio.create_task(self._finish(sender, finish, monitor), name="transfer-finish")
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _finish(self, sender: SenderPort, finish: Finish, monitor: FetchMonitor) -> None:
        began_s = self._clock.now_s()
        try:
            await sender.finish(finish)
        except PrfaasError:
            return  # the sender is gone, or its lease will end the transfer
        monitor.round_trip(self._clock.now_s() - began_s)
