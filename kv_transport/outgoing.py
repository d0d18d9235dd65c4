"""One transfer at its sender: pulls from the source, hands frames to whichever lanes ask. Knows no sockets.

The source's events are pumped into the state machine by one task. Every lane is a generator of frames; asking it for
the next frame means that the previous one was taken, which is the only progress the lease counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from kv_transport import frames
from kv_transport.api import FirstTokens, Offer, PrefillOrder, PrefillSource, Queued, RangeReady
from kv_transport.codecs.base import WireCodec
from kv_transport.codecs.registry import AS_IS
from kv_transport.frames import ChunkHeader
from kv_transport.gate import TurnGate
from kv_transport.messages import Attach, Digest, First, Manifest, PathStats, Progress
from kv_transport.meter import TransferMeter
from kv_transport.session.chunks import Chunk
from kv_transport.session.send_order import Traffic
from kv_transport.session.sender import SendSession
from kv_transport.signal import Signal
from kv_transport.tcp_info import PathLedger
from prfaas.clock import Clock
from prfaas.errors import EngineFailed, PrfaasError, ProtocolViolation, TransferBroken, TransferGone
from prfaas.log import logger
from prfaas.types import SiteId, TransferId, WorkerId

log = logger(__name__)

MAIN_LANE = 0


@dataclass(frozen=True, slots=True)
class SendLimits:
    """What a sender's settings come to. Bytes and seconds."""

    chunk_bytes: int
    lease_s: float
    heartbeat_s: float
    max_lanes: int


@dataclass(frozen=True, slots=True)
class SendContext:
    """What all transfers of one sender share."""

    worker_id: WorkerId
    site: SiteId
    limits: SendLimits
    gate: TurnGate
    meter: TransferMeter
    clock: Clock
    ledger: PathLedger
    readers: Executor | None  # where sources are read and chunks encoded; None: on the event loop


class Outgoing:
    """A transfer from the moment its source is open until it is released."""

    def __init__(
        self, transfer_id: TransferId, order: PrefillOrder, source: PrefillSource, codec: WireCodec, shared: SendContext
    ) -> None:
        self.transfer_id = transfer_id
        self.receiver_site = order.receiver_site
        self.max_lanes = min(order.max_lanes, shared.limits.max_lanes)
        self._source = source
        self._codec = codec
        self._shared = shared
        self._signal = Signal()
        self._session: SendSession | None = None
        self._offer: Offer | None = None
        self._manifest_frame = b""
        self._manifest_s = 0.0
        self._queued: Queued | None = None
        self._failure: PrfaasError | None = None
        self._closed = False
        self._announced = False
        self._peers: set[str] = set()
        self._began_s = shared.clock.now_s()
        self._last_touch_s = self._began_s
        left_s = order.request.deadline_s
        self._traffic = Traffic(
            key=transfer_id,
            tenant=order.request.tenant,
            site=order.receiver_site,
            deadline_s=None if left_s is None else self._began_s + left_s,
        )
        shared.meter.began()
        self._pump = asyncio.create_task(self._pump_events(), name=f"transfer-{transfer_id}")

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def failed(self) -> bool:
        """The source failed: no resume can help."""
        return self._failure is not None

    @property
    def num_lanes(self) -> int:
        return self._session.num_lanes if self._session is not None else 0

    @property
    def waiting_bytes(self) -> int:
        """Computed bytes that the network has not taken yet."""
        return self._session.waiting_bytes if self._session is not None else 0

    @property
    def announced(self) -> bool:
        """The manifest was handed to the receiver, which may come back for the rest."""
        return self._announced and not self._closed and self._failure is None

    def lease_left_s(self) -> float:
        """Seconds until the transfer may be dropped. Waiting for our own link is not held against the receiver."""
        now_s = self._shared.clock.now_s()
        if self._traffic.waiting > 0:
            self._touch()
        return self._last_touch_s + self._shared.limits.lease_s - now_s

    def close(self, *, committed: bool, failure: str | None = None) -> None:
        """Stop computing, release the source, end every lane. Idempotent; `failure` is counted."""
        if self._closed:
            return
        self._closed = True
        self._pump.cancel()
        if self._session is not None:
            self._session.close()
        self._source.release(committed=committed)
        self._shared.meter.ended(self._shared.clock.now_s() - self._began_s, None if committed else failure or "cancelled")
        self._signal.notify()

    async def closed_pump(self) -> None:
        """Wait until the pump task is gone."""
        await asyncio.wait([self._pump])

    async def main_lane(self, peer: str) -> AsyncGenerator[bytes, None]:
        """Everything from the queue to the digest, as frames, to the connection's far end `peer` ("" when unknown).
        Raises what the source raised."""
        self._peers.add(peer)
        self._shared.ledger.meet(peer)
        while self._session is None:
            self._raise_if_over()
            if self._queued is not None:
                queued, self._queued = self._queued, None
                yield frames.encode_queued(queued)
                self._touch()
                continue
            if not await self._signal.wait(self._shared.limits.heartbeat_s):
                yield frames.encode_progress(Progress(0, 0))
                self._touch()
        attachment = self._session.attach(MAIN_LANE)
        try:
            self._announced = True
            yield self._manifest_frame
            self._touch()
            async with aclosing(self._carry(self._session, MAIN_LANE, attachment)) as carried:
                async for frame in carried:
                    yield frame
        finally:
            self._session.detach(MAIN_LANE, attachment)

    async def lane(self, request: Attach, peer: str) -> AsyncGenerator[bytes, None]:
        """One more lane, or one that replaces a broken one; it ends with the digest."""
        self._peers.add(peer)
        self._shared.ledger.meet(peer)
        session, lane = self._session, request.lane
        if session is None:
            raise TransferGone("the transfer has no manifest yet and cannot be attached to")
        if lane >= self.max_lanes:
            raise ProtocolViolation(f"lane {lane} of at most {self.max_lanes}", frame="attach", state=session.state)
        attachment = session.attach(lane)
        try:
            if request.resume and (resent := session.resume(request.received, (lane, *request.given_up))):
                self._shared.meter.resent += resent
                self._signal.notify()
            self._touch()
            async with aclosing(self._carry(session, lane, attachment)) as carried:
                async for frame in carried:
                    yield frame
        finally:
            session.detach(lane, attachment)

    async def _carry(self, session: SendSession, lane: int, attachment: int) -> AsyncGenerator[bytes, None]:
        first_due = lane == MAIN_LANE
        rate = 0.0
        while True:
            self._raise_if_over()
            if not session.is_attached(lane, attachment):
                raise TransferBroken(f"lane {lane} was attached anew")
            if first_due and session.first_frame is not None:
                first_due = False
                yield session.first_frame
                self._touch()
            elif session.has_work:
                async with self._shared.gate.slot(self._traffic, session.chunk_limit(rate)) as slot:
                    chunk = session.next_chunk(attachment, lane_bytes_per_s=rate)
                    if chunk is None:
                        continue
                    frame = await self._framed(session, chunk)
                    self._touch()
                    began_s = self._shared.clock.now_s()
                    slot.holds(len(frame))
                    yield frame
                    session.left(chunk.seq)
                    slot.sent()
                    self._touch()
                    took_s = max(self._shared.clock.now_s() - began_s, 1e-6)
                    rate = len(frame) / took_s if rate == 0 else 0.7 * rate + 0.3 * len(frame) / took_s
                if session.drained:
                    self._signal.notify()  # the others may end, or help with what is still leaving
            elif (late := session.steal(attachment)) is not None:
                yield await self._framed(session, late)
                self._touch()
            elif (digest := session.digest()) is not None:
                # Every lane says this, so that the end does not wait behind a chunk on a slow main lane.
                if lane != MAIN_LANE and session.first_frame is not None:
                    yield session.first_frame
                path = self._shared.ledger.take(self._peers - {""}) if lane == MAIN_LANE else PathStats()
                yield frames.encode_digest(Digest(session.num_chunks, session.wire_bytes, digest, path))
                self._touch()
                await self._stay()
                return
            elif not await self._signal.wait(self._shared.limits.heartbeat_s):
                yield frames.encode_progress(Progress(session.ready_bytes, session.cut_bytes))
                self._touch()

    async def _stay(self) -> None:
        """Keep a lane that has said everything attached until its receiver leaves it: what it carried may be under way
        still, and must not be sent again because another lane broke."""
        while not self._closed:
            await self._signal.wait(self._shared.limits.lease_s)

    async def _framed(self, session: SendSession, chunk: Chunk) -> bytes:
        if self._shared.readers is None:
            codec, packed, frame = self._encode(chunk)
        else:
            loop = asyncio.get_running_loop()
            codec, packed, frame = await loop.run_in_executor(self._shared.readers, self._encode, chunk)
        wire_bytes = len(frame) - frames.HEADER.size
        session.framed(chunk.seq, packed, wire_bytes)
        self._shared.meter.moved(wire_bytes, codec.name)
        return frame

    def _encode(self, chunk: Chunk) -> tuple[WireCodec, bytes, bytes]:
        if self._offer is None:
            raise EngineFailed("a chunk before the offer")
        plan = self._offer.groups[chunk.group_index]
        payload = [self._source.read(part) for part in chunk.parts]
        size = sum(len(part) for part in payload)
        if size != chunk.raw_bytes:
            raise EngineFailed(f"the prefill gave {size} bytes for a range of {chunk.raw_bytes}", seq=chunk.seq)
        codec, coded = self._codec, self._codec.encode(plan, chunk.range, payload)
        if coded is None:
            codec, coded = AS_IS, payload
        part = chunk.range
        header = ChunkHeader(
            codec=codec.code,
            group=chunk.group_index,
            seq=chunk.seq,
            layer_start=part.layer_start,
            layer_stop=part.layer_stop,
            token_start=part.token_start,
            token_stop=part.token_stop,
            raw_bytes=size,
            wire_bytes=sum(len(part) for part in coded),
        )
        packed, frame = frames.encode_chunk(header, coded)
        return codec, packed, frame

    async def _pump_events(self) -> None:
        try:
            async for event in self._source.events():
                self._on_event(event)
                self._signal.notify()
            if self._session is None or self._session.first_frame is None:
                raise EngineFailed("the prefill ended without its first tokens")
        except PrfaasError as error:
            self._failure = error
        except Exception as error:
            log.exception("transfer %s: the prefill's events failed", self.transfer_id)
            self._failure = EngineFailed(f"the prefill's events failed: {type(error).__name__}")
        self._signal.notify()

    def _on_event(self, event: Queued | Offer | RangeReady | FirstTokens) -> None:
        if isinstance(event, Queued):
            self._queued = event
        elif isinstance(event, Offer):
            self._begin(event)
        elif self._session is None:
            raise EngineFailed("the prefill reported results before its offer")
        elif isinstance(event, RangeReady):
            self._session.ready(event.range)
        else:
            since_s = self._shared.clock.now_s() - self._manifest_s
            self._session.computed(frames.encode_first(First(event, since_s)))

    def _begin(self, offer: Offer) -> None:
        if self._session is not None:
            raise EngineFailed("the prefill made two offers")
        shared = self._shared
        manifest = Manifest(
            transfer_id=self.transfer_id,
            sender=shared.worker_id,
            sender_site=shared.site,
            offer=offer,
            codec=self._codec.name,
            suggested_lanes=self.max_lanes,
        )
        self._offer = offer
        self._manifest_s = shared.clock.now_s()
        self._manifest_frame = frames.encode_manifest(manifest)
        self._session = SendSession(offer, self._manifest_frame, chunk_bytes=shared.limits.chunk_bytes)
        self._traffic.total_bytes = self._session.total_bytes

    def _touch(self) -> None:
        self._last_touch_s = self._shared.clock.now_s()

    def _raise_if_over(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise TransferGone("the transfer was released: committed, cancelled, or its lease ran out")
