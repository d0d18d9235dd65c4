"""One transfer at its receiver: reads lanes, lands chunks, replaces broken lanes, decides when it is over. No sockets.

Every lane is a task. A lane that breaks, stalls or delivers a damaged chunk is attached anew, stating what has landed;
it may fail `max_resumes` times in a row without landing a chunk. The main lane (0) failing for good ends the transfer,
another lane's unconfirmed chunks are fetched by restarting the main lane.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

from kv_transport import frames, messages
from kv_transport.api import FetchResult, PrefillOrder, Sink
from kv_transport.codecs.registry import codec_coded, codec_named
from kv_transport.frames import ChunkFrame, FirstFrame, ManifestFrame
from kv_transport.gate import TurnGate
from kv_transport.messages import Attach, Digest, Finish, Manifest, Progress
from kv_transport.session.receiver import Arrival, ReceiverState, ReceiveSession
from kv_transport.session.send_order import Traffic
from kv_transport.wire import FrameStream, ReceiveMonitor, SenderPort
from prfaas.clock import Clock
from prfaas.errors import (
    ChunkCorrupt,
    PrfaasError,
    ProtocolViolation,
    RequestCancelled,
    TransferBroken,
    TransferError,
    TransferStalled,
    WorkerUnreachable,
)
from prfaas.log import logger
from prfaas.types import TransferId

log = logger(__name__)

MAIN_LANE = 0
RETRY_BASE_S = 0.05


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What a receiver's settings come to."""

    progress_timeout_s: float
    max_resumes: int
    max_lanes: int


@dataclass(slots=True)
class _Lane:
    """One lane's task state."""

    number: int
    stream: FrameStream
    heard_s: float
    stalled: bool = False
    ended: bool = False  # said everything: its digest came, and so did what it carried before
    failures: int = 0  # in a row, without a chunk landed


class Incoming:
    """A fetch under way. `run` once."""

    def __init__(
        self,
        order: PrefillOrder,
        sender: SenderPort,
        sink: Sink,
        *,
        limits: FetchLimits,
        monitor: ReceiveMonitor,
        clock: Clock,
        turns: TurnGate,
    ) -> None:
        self._order = order
        self._sender = sender
        self._sink = sink
        self._limits = limits
        self._monitor = monitor
        self._clock = clock
        self._turns = turns
        left_s = order.request.deadline_s
        self._traffic = Traffic(
            key=order.request.request_id,
            tenant=order.request.tenant,
            site=order.receiver_site,
            deadline_s=None if left_s is None else clock.now_s() + left_s,
        )
        self._session = ReceiveSession()
        self._lanes: dict[int, _Lane] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transfer_id = TransferId(uuid.uuid4().hex)
        self._manifest: Manifest | None = None
        self._manifest_s = 0.0
        self._first: messages.First | None = None
        self._last_byte_s = 0.0
        self._wire_bytes = 0
        self._resumes = 0
        self._given_up: tuple[int, ...] = ()
        self._most_lanes = 1

    @property
    def manifest(self) -> Manifest | None:
        """Who sends what, once known."""
        return self._manifest

    async def run(self) -> FetchResult:
        """Carry the transfer to its end. Raises as `PrefillTransport.fetch`; every lane is gone when it returns."""
        self._turns.join()
        order = messages.to_pb_order(self._order, self._transfer_id).SerializeToString()
        self._open(MAIN_LANE, self._sender.prefill(order, MAIN_LANE))
        watch = asyncio.create_task(self._watch())
        try:
            await self._over
        finally:
            if not self._over.done():
                self._over.cancel()
            self._turns.quit()
            watch.cancel()
            for lane in self._lanes.values():
                lane.stream.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(watch, *self._tasks, return_exceptions=True)
        return self._result()

    def finish(self, *, committed: bool, reason: str = "") -> Finish:
        """What to tell the sender when it is over."""
        return Finish(self._transfer_id, committed, reason)

    def stop(self) -> None:
        """Make `run` raise RequestCancelled."""
        self._fail(RequestCancelled("the transport was closed"))

    def _result(self) -> FetchResult:
        if self._manifest is None or self._first is None:
            raise ProtocolViolation("the transfer ended without manifest or first tokens")
        computed_s = self._manifest_s - self._monitor.one_way_s() + self._first.since_manifest_s
        return FetchResult(
            first=self._first.tokens,
            offer=self._manifest.offer,
            raw_bytes=self._session.landed_bytes,
            wire_bytes=self._wire_bytes,
            wire_s=max(0.0, self._last_byte_s - computed_s),
            codec=self._manifest.codec,
            lanes=self._most_lanes,
            resumes=self._resumes,
        )

    def _open(self, number: int, stream: FrameStream) -> None:
        lane = _Lane(number, stream, self._clock.now_s())
        self._lanes[number] = lane
        self._most_lanes = max(self._most_lanes, len(self._lanes))
        self._monitor.lanes_changed(+1)
        task = asyncio.create_task(self._guard(lane), name=f"lane-{number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guard(self, lane: _Lane) -> None:
        try:
            await self._keep(lane)
        except PrfaasError as error:
            self._fail(error)
        except Exception as error:
            log.exception("a lane of %s failed", self._order.request.request_id)
            self._fail(TransferBroken(f"the receiver failed: {type(error).__name__}: {error}"))
        finally:
            lane.stream.cancel()
            self._lanes.pop(lane.number, None)
            self._monitor.lanes_changed(-1)

    async def _keep(self, lane: _Lane) -> None:
        while True:
            try:
                await self._read(lane)
                return
            except (TransferBroken, ChunkCorrupt, WorkerUnreachable) as error:
                lane.stream.cancel()
                if self._over.done():
                    return
                if self._manifest is None:
                    raise self._stall_of(lane, error) from error
                lane.failures += 1
                if lane.failures > self._limits.max_resumes:
                    self._give_up(lane, error)
                    return
                if lane.stalled or isinstance(error, ChunkCorrupt):
                    self._sender.replace(lane.number)
                log.info("lane %d broke, attaching it again: %s", lane.number, error.message)
            await asyncio.sleep(RETRY_BASE_S * (2 ** (lane.failures - 1) - 1))
            self._resumes += 1
            self._monitor.resumed()
            lane.stalled = lane.ended = False
            lane.heard_s = self._clock.now_s()
            owed = self._given_up if lane.number == MAIN_LANE else ()
            request = Attach(self._manifest.transfer_id, lane.number, True, self._session.received(), owed)
            lane.stream = self._sender.attach(request)

    def _give_up(self, lane: _Lane, error: PrfaasError) -> None:
        main = self._lanes.get(MAIN_LANE)
        if lane.number == MAIN_LANE or main is None:
            broken = self._stall_of(lane, error)
            if not isinstance(broken, TransferError):
                broken = TransferBroken(f"lane {lane.number} could not be attached again: {error.message}")
            raise broken from error
        log.warning("lane %d is given up: %s", lane.number, error.message)
        self._given_up += (lane.number,)
        main.stream.cancel()  # its resume fetches what the lost lane owed

    def _stall_of(self, lane: _Lane, error: PrfaasError) -> PrfaasError:
        if not lane.stalled:
            return error
        idle_s = self._limits.progress_timeout_s
        return TransferStalled(f"nothing was heard from the sender for {idle_s} s", idle_s=idle_s)

    async def _read(self, lane: _Lane) -> None:
        while (frame := await lane.stream.read()) is not None:
            lane.heard_s = self._clock.now_s()
            async with self._turns.slot(self._traffic, len(frame)) as slot:
                slot.holds(len(frame))
                if self._turns.contended:
                    await asyncio.sleep(0)  # lets every other lane with a frame queue up, so that the order decides
                self._on_frame(lane, frame)
                slot.sent()
            if lane.ended or self._over.done():
                break
        if self._over.done():
            return
        if lane.number == MAIN_LANE and not self._session.has_digest:
            raise TransferBroken("the main lane ended without a digest")
        if len(self._lanes) == 1 and not self._over.done():
            raise TransferBroken("every lane has ended and chunks are missing")

    def _on_frame(self, lane: _Lane, data: bytes) -> None:
        frame = frames.decode(data)
        if isinstance(frame, ChunkFrame):
            if self._land(frame):
                lane.failures = 0
        elif isinstance(frame, ManifestFrame):
            self._begin(frame)
        elif isinstance(frame, FirstFrame):
            self._session.first(frame.raw)
            self._first = frame.first
        elif isinstance(frame, Digest):
            lane.ended = True
            self._monitor.sender_path(frame.path)
            self._session.digest(frame.num_chunks, frame.sha256)
        elif isinstance(frame, Progress):
            self._monitor.progress(frame, self._session.landed_bytes)
        else:
            self._session.waiting("queued")
        if self._session.state is ReceiverState.COMPLETE and not self._over.done():
            self._over.set_result(None)

    def _begin(self, frame: ManifestFrame) -> None:
        manifest = frame.manifest
        if manifest.transfer_id != self._transfer_id:
            raise ProtocolViolation("the manifest is of another transfer", frame="manifest", state="waiting")
        codec = codec_named(manifest.codec)
        if codec.name not in self._order.codecs and codec.name != "as_is":
            raise ProtocolViolation(f"codec {codec.name} was not asked for", frame="manifest", state="waiting")
        if manifest.offer.num_tokens != len(self._order.request.tokens):
            raise ProtocolViolation(
                f"the manifest is for {manifest.offer.num_tokens} tokens, the prompt has {len(self._order.request.tokens)}",
                frame="manifest",
                state="waiting",
            )
        self._session.manifest(manifest.offer, frame.raw)
        self._traffic.total_bytes = self._session.total_bytes
        self._sink.begin(manifest.offer)
        self._manifest = manifest
        self._manifest_s = self._last_byte_s = self._clock.now_s()
        self._monitor.began(manifest)
        if not self._monitor.knows_rtt:
            self._monitor.round_trip(self._sender.rtt_s())
        wanted = self._monitor.wanted_lanes(self._session.total_bytes)
        for number in range(1, min(wanted, manifest.suggested_lanes, self._order.max_lanes, self._limits.max_lanes)):
            self._open(number, self._sender.attach(Attach(manifest.transfer_id, number, False)))

    def _land(self, frame: ChunkFrame) -> bool:
        header = frame.header
        arrival = Arrival(
            header.seq,
            header.group,
            header.layer_start,
            header.layer_stop,
            header.token_start,
            header.token_stop,
            header.raw_bytes,
        )
        placement = self._session.accept(arrival, frame.packed_header)
        if placement is None:
            return False
        codec = codec_coded(header.codec)
        payload = codec.decode(placement.plan, placement.range, header.raw_bytes, frame.payload)
        self._sink.write(placement.range, payload, placement.plan.wire_dtypes)
        self._wire_bytes += header.wire_bytes
        self._last_byte_s = self._clock.now_s()
        self._monitor.landed(header.wire_bytes, codec.name, self._last_byte_s)
        self._session.landed(arrival, frame.packed_header, placement)
        return True

    def _fail(self, error: PrfaasError) -> None:
        if not self._over.done():
            self._over.set_exception(error)

    async def _watch(self) -> None:
        timeout_s = self._limits.progress_timeout_s
        while True:
            await asyncio.sleep(timeout_s / 4)
            now_s = self._clock.now_s()
            for lane in self._lanes.values():
                if not lane.stalled and now_s - lane.heard_s > timeout_s:
                    lane.stalled = True
                    lane.stream.cancel()
