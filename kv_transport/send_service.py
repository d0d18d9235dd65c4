"""The sender's table of transfers: opens them, finds them again for lanes and resumes, releases them. Knows no sockets.

A transfer is kept while a receiver takes frames, and `lease_s` longer. It is released at once on `finish`, when its
source fails, and when its call ends before the manifest was handed over.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing

from google.protobuf.message import DecodeError

from kv_transport import messages
from kv_transport.api import PrefillHandler, PrefillOrder, PrefillSource
from kv_transport.codecs.registry import negotiate
from kv_transport.gate import TurnGate
from kv_transport.messages import Finish
from kv_transport.meter import SEND, TransferMeter
from kv_transport.outgoing import Outgoing, SendContext, SendLimits
from kv_transport.session.send_order import SendBudget, SendOrder, Traffic
from kv_transport.tcp_info import PathLedger
from prfaas.clock import Clock, unix_time_s
from prfaas.config import TransportSettings
from prfaas.errors import Draining, InvalidRequest, PrfaasError, TransferGone
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.pb import transfer_pb2
from prfaas.types import LinkView, SiteId, TransferId, WorkerId

log = logger(__name__)

# Framing a chunk keeps the event loop busy for most of a millisecond. One at a time, so that a new order, a release or a
# short transfer's chunk waits for one chunk and not for eight; with YIELD_S this starts 1000 chunks a second even if every
# receiver blocks.
SEND_TURNS = 1
READING_TURNS = 4  # where other threads read and code chunks
SWEEP_S = 1.0
MAX_SITES = 64  # receiving sites whose paths are reported
MAX_PROBE_BYTES = 1024**3
MAX_PROBE_MESSAGE_BYTES = 4 * 1024**2
PROBE_SITE = SiteId("(probe)")


class SendService:
    """Serves prefills of one worker as streams of frames. Created on the event loop that uses it."""

    def __init__(
        self,
        handler: PrefillHandler,
        settings: TransportSettings,
        *,
        worker_id: WorkerId,
        site: SiteId,
        clock: Clock,
        metrics: MetricSet | None = None,
        readers: Executor | None = None,
    ) -> None:
        budget = SendBudget(
            own_site=site,
            turns=SEND_TURNS if readers is None else READING_TURNS,
            in_flight_bytes=settings.send_buffer_bytes,
            site_bytes_per_s=settings.egress_bytes_per_s,
            tenant_bytes_per_s=settings.tenant_egress_bytes_per_s,
        )
        limits = SendLimits(
            chunk_bytes=settings.chunk_bytes,
            lease_s=settings.lease_s,
            heartbeat_s=settings.progress_timeout_s / 4,
            max_lanes=settings.max_lanes,
        )
        self._handler = handler
        self._codec = settings.wire_codec
        self._meter = TransferMeter(SEND, metrics)
        self._gate = TurnGate(SendOrder(budget), clock)
        self._shared = SendContext(worker_id, site, limits, self._gate, self._meter, clock, PathLedger(), readers)
        self._transfers: dict[TransferId, Outgoing] = {}
        self._opening: set[TransferId] = set()
        self._receivers: dict[SiteId, None] = {}  # sites that were sent to, oldest first
        self._closing = False
        self._sweeper = asyncio.create_task(self._sweep(), name="transfer-leases")

    @property
    def shared(self) -> SendContext:
        return self._shared

    async def prefill(self, order_bytes: bytes, peer: str = "") -> AsyncGenerator[bytes, None]:
        """The main lane of a new transfer. Raises what the handler and the source raise, and Draining when closing."""
        self._refuse_when_closing()
        try:
            message = transfer_pb2.PrefillOrder.FromString(order_bytes)
            transfer_id, order = messages.transfer_id_of(message), messages.from_pb_order(message)
        except DecodeError as error:
            raise InvalidRequest("the prefill order is not valid protobuf") from error
        source = await self._open(transfer_id, order)
        codec = negotiate(self._codec, order.codecs, self._gate.site_bytes_per_s(order.receiver_site))
        transfer = Outgoing(transfer_id, order, source, codec, self._shared)
        self._transfers[transfer.transfer_id] = transfer
        self._remember(order.receiver_site)
        self._meter.leases(len(self._transfers))
        try:
            async with aclosing(transfer.main_lane(peer)) as lane:
                async for frame in lane:
                    yield frame
        except PrfaasError as error:
            if transfer.failed:
                self._release(transfer, committed=False, failure=error.code)
            raise
        finally:
            if not transfer.announced:
                self._release(transfer, committed=False)

    async def _open(self, transfer_id: TransferId, order: PrefillOrder) -> PrefillSource:
        """The source of a new transfer. Its id is taken from here on: opening waits, and others may come meanwhile."""
        if transfer_id in self._transfers or transfer_id in self._opening:
            raise InvalidRequest("this transfer id is in use")
        self._opening.add(transfer_id)
        try:
            source = await self._handler.open(order)
        finally:
            self._opening.discard(transfer_id)
        try:
            self._refuse_when_closing()
        except Draining:
            source.release(committed=False)
            raise
        return source

    async def attach(self, request_bytes: bytes, peer: str = "") -> AsyncGenerator[bytes, None]:
        """A further or replacing lane. Raises TransferGone for an unknown transfer."""
        try:
            request = messages.from_pb_attach(transfer_pb2.AttachRequest.FromString(request_bytes))
        except DecodeError as error:
            raise InvalidRequest("the attach request is not valid protobuf") from error
        transfer = self._transfers.get(request.transfer_id)
        if transfer is None:
            raise TransferGone("no such transfer: committed, cancelled, or its lease ran out")
        if request.resume:
            self._meter.resumed()
        async with aclosing(transfer.lane(request, peer)) as lane:
            async for frame in lane:
                yield frame

    async def probe(self, request_bytes: bytes, peer: str = "") -> AsyncGenerator[bytes, None]:
        """A reply, filler of the wanted size in turns with the transfers, and a reply with the path's figures."""
        try:
            request = transfer_pb2.ProbeRequest.FromString(request_bytes)
        except DecodeError as error:
            raise InvalidRequest("the probe request is not valid protobuf") from error
        if request.bytes > MAX_PROBE_BYTES or request.message_bytes > MAX_PROBE_MESSAGE_BYTES:
            raise InvalidRequest(f"a probe is at most {MAX_PROBE_BYTES} bytes in messages of {MAX_PROBE_MESSAGE_BYTES}")
        shared = self._shared
        shared.ledger.take([peer])
        reply = transfer_pb2.ProbeReply(unix_time_s=unix_time_s(), worker_id=shared.worker_id, site=shared.site)
        yield reply.SerializeToString()
        if request.bytes == 0:
            return
        filler = bytes(max(1, request.message_bytes))
        traffic = Traffic(key="probe", tenant="", site=PROBE_SITE)
        left = request.bytes
        while left > 0:
            message = filler if left >= len(filler) else filler[:left]
            async with shared.gate.slot(traffic, len(message)) as slot:
                slot.holds(len(message))
                yield message
                slot.sent()
            left -= len(message)
        path = shared.ledger.take([peer])
        reply.path.rtt_s, reply.path.sent_bytes, reply.path.retransmitted_bytes = (
            path.rtt_s,
            path.sent_bytes,
            path.retransmitted_bytes,
        )
        yield reply.SerializeToString()

    def finish(self, request: Finish) -> None:
        """The receiver has committed or given up. Unknown transfers are fine: they are released already."""
        transfer = self._transfers.get(request.transfer_id)
        if transfer is not None:
            self._release(transfer, committed=request.committed, failure=None if request.committed else "cancelled")

    def counters(self) -> dict[str, float]:
        """active_transfers, buffered_bytes, open_lanes, resent_chunks, waiting_lanes."""
        counters = self._meter.counters()
        counters["buffered_bytes"] = float(self._gate.held_bytes)
        counters["open_lanes"] = float(sum(transfer.num_lanes for transfer in self._transfers.values()))
        counters["waiting_lanes"] = float(self._gate.num_waiting)
        counters["resent_chunks"] = float(self._meter.resent)
        return counters

    def links(self) -> tuple[LinkView, ...]:
        """The paths from here as their sender sees them: what waits to be sent, in how many transfers, and how fast it goes.
        On a path that is clogged the receiver cannot know, because what it is told of queues behind the data."""
        waiting, active = Counter[SiteId](), Counter[SiteId]()
        for transfer in self._transfers.values():
            waiting[transfer.receiver_site] += transfer.waiting_bytes
            active[transfer.receiver_site] += 1
        own_site = self._shared.site
        return tuple(
            LinkView(
                own_site, site, queued_bytes=waiting[site], active_transfers=active[site],
                goodput_bytes_per_s=self._gate.site_bytes_per_s(site) if waiting[site] else 0.0,
            )
            for site in self._receivers
        )  # fmt: skip

    def _remember(self, site: SiteId) -> None:
        self._receivers[site] = None
        if len(self._receivers) > MAX_SITES:
            del self._receivers[next(iter(self._receivers))]

    async def close(self) -> None:
        """Release every transfer; lanes that are still read end with TransferGone. Idempotent."""
        self._closing = True
        self._sweeper.cancel()
        transfers = list(self._transfers.values())
        for transfer in transfers:
            self._release(transfer, committed=False, failure="draining")
        await asyncio.gather(self._sweeper, *(t.closed_pump() for t in transfers), return_exceptions=True)

    def _refuse_when_closing(self) -> None:
        if self._closing:
            raise Draining("this worker is shutting down")

    def _release(self, transfer: Outgoing, *, committed: bool, failure: str | None = None) -> None:
        self._transfers.pop(transfer.transfer_id, None)
        self._meter.leases(len(self._transfers))
        transfer.close(committed=committed, failure=failure)

    async def _sweep(self) -> None:
        period_s = min(SWEEP_S, self._shared.limits.lease_s / 4)
        while True:
            await asyncio.sleep(period_s)
            for transfer in list(self._transfers.values()):
                if transfer.lease_left_s() <= 0:
                    log.warning("transfer %s: no progress for its whole lease, released", transfer.transfer_id)
                    self._release(transfer, committed=False, failure="transfer_stalled")
