"""Faults between the ends, at every frame of a transfer: the right bytes or a typed error, nothing left, counters moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from kv_transport import messages
from kv_transport.frames import Kind
from kv_transport.memory import Faults, Trouble
from kv_transport.messages import Attach
from kv_transport.testing.harness import MemoryHarness
from kv_transport.testing.sources import FakeHandler, KeepingSink, Script, hybrid_offer, order_of, source_of
from kv_transport.testing.suite import failure_of, settled
from prfaas import metrics
from prfaas.config import TransportSettings
from prfaas.errors import (
    ChunkCorrupt,
    DigestMismatch,
    PrfaasError,
    ProtocolViolation,
    TransferBroken,
    TransferGone,
    TransferStalled,
)
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import TransferId

pytestmark = pytest.mark.fault

FRAMES = 13  # of the transfer below on one lane: manifest, 10 chunks, first tokens, digest


def fast(**changes: object) -> TransportSettings:
    fields: dict[str, object] = {"chunk_bytes": 4096, "lanes": 1, "progress_timeout_s": 0.15, "lease_s": 1.0}
    return TransportSettings.model_validate(fields | changes)


@dataclass
class At:
    """Does `action` to the frame number `number` (counted over all lanes), `times` times in a row."""

    number: int
    action: Callable[[bytes], Sequence[bytes | Trouble]]
    times: int = 1
    seen: int = 0
    struck: int = 0

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        at, self.seen = self.seen, self.seen + 1
        if at >= self.number and self.struck < self.times:
            self.struck += 1
            return self.action(frame)
        return (frame,)


def cut(frame: bytes) -> Sequence[bytes | Trouble]:
    return (Trouble.CUT,)


def cut_after(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame, Trouble.CUT)


def stall(frame: bytes) -> Sequence[bytes | Trouble]:
    return (Trouble.STALL,)


def drop(frame: bytes) -> Sequence[bytes | Trouble]:
    return ()


def duplicate(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame, frame)


def flip(frame: bytes) -> Sequence[bytes | Trouble]:
    middle = len(frame) // 2
    return (frame[:middle] + bytes((frame[middle] ^ 4,)) + frame[middle + 1 :],)


def truncate(frame: bytes) -> Sequence[bytes | Trouble]:
    return (frame[: len(frame) // 2],)


@dataclass
class Reorder:
    """Keeps back every chunk until the next chunk has passed."""

    kept: dict[int, bytes] = field(default_factory=dict)

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        kept = self.kept.pop(lane, None)
        if frame[0] != Kind.CHUNK:
            return (kept, frame) if kept else (frame,)
        if kept is None:
            self.kept[lane] = frame
            return ()
        return (frame, kept)


async def outcome(faults: Faults, settings: TransportSettings) -> PrfaasError | None:
    """Run a transfer through the faults. Its error, or None when every byte arrived. Checks leaks and counters."""
    source = source_of(hybrid_offer(tokens=300), step_tokens=128)
    source.script = Script(layer_s=0.0005)
    sent, got = MetricSet(Emitter.WORKER), MetricSet(Emitter.WORKER)
    harness = MemoryHarness(faults, send_metrics=sent, receive_metrics=got)
    async with harness.join(FakeHandler(source), settings) as ends:
        sink = KeepingSink()
        error: PrfaasError | None = None
        try:
            result = await ends.transport.fetch(order_of(300), ends.address, sink)
            sink.require(source.contents)
            assert result.resumes == got.registry.get_sample_value("prfaas_kv_transfer_resumes_total")
        except PrfaasError as failure:
            error = failure
            labels = {"direction": "receive", "reason": error.code}
            assert got.registry.get_sample_value("prfaas_kv_transfer_failures_total", labels) == 1
        await settled(ends, source)
        assert source.released == [error is None]
        for direction, metric_set in (("send", sent), ("receive", got)):
            active = metric_set.registry.get_sample_value(metrics.TRANSFERS_ACTIVE.name, {"direction": direction})
            assert active == 0
        assert sent.registry.get_sample_value(metrics.LEASES_ACTIVE.name) == 0
        return error


@pytest.mark.parametrize("number", range(FRAMES))
@pytest.mark.parametrize("action", [cut, cut_after, stall, flip, truncate, drop], ids=lambda action: action.__name__)
async def test_one_fault_anywhere(action: Callable[[bytes], Sequence[bytes | Trouble]], number: int) -> None:
    """After the manifest every single fault heals. Before it there is nothing to resume: a typed error."""
    error = await outcome(At(number, action), fast())
    if error is None:
        assert number > 0 or action is cut_after
    elif number == 0:
        kinds = {stall: TransferStalled, cut: TransferBroken}
        assert isinstance(error, kinds.get(action, ProtocolViolation)), error
    else:
        # A damaged control frame has no checksum of its own: it is noticed as malformed or by the digest.
        assert action in (flip, truncate)
        assert isinstance(error, ProtocolViolation | DigestMismatch), error


@pytest.mark.parametrize("number", [1, 5, 9])
@pytest.mark.parametrize("action", [cut, stall, flip, truncate], ids=lambda action: action.__name__)
async def test_a_fault_on_chunks_heals(action: Callable[[bytes], Sequence[bytes | Trouble]], number: int) -> None:
    error = await outcome(At(number, action), fast())
    assert error is None or (action is truncate and isinstance(error, ProtocolViolation))


@pytest.mark.parametrize("number", range(1, 11))
async def test_duplicates_are_harmless(number: int) -> None:
    assert await outcome(At(number, duplicate, times=4), fast()) is None


@pytest.mark.parametrize("lanes", [1, 4])
async def test_reordering_is_harmless(lanes: int) -> None:
    assert await outcome(Reorder(), fast(lanes=lanes)) is None


@pytest.mark.parametrize("number", range(0, 16, 3))
@pytest.mark.parametrize("action", [cut, stall, flip], ids=lambda action: action.__name__)
async def test_faults_on_one_of_several_lanes(action: Callable[[bytes], Sequence[bytes | Trouble]], number: int) -> None:
    error = await outcome(At(number + 1, action), fast(lanes=4))
    assert error is None or isinstance(error, ProtocolViolation | DigestMismatch)


@dataclass
class LaneIsDead:
    """One lane never carries a frame."""

    lane: int

    def deliver(self, lane: int, frame: bytes) -> Sequence[bytes | Trouble]:
        return (Trouble.CUT,) if lane == self.lane else (frame,)


async def test_the_main_lane_fetches_what_a_dead_lane_owes() -> None:
    assert await outcome(LaneIsDead(2), fast(lanes=3, max_resumes=1)) is None


@pytest.mark.parametrize(
    ("action", "kind"), [(cut, TransferBroken), (stall, TransferStalled), (flip, ChunkCorrupt)], ids=["cut", "stall", "flip"]
)
async def test_a_path_that_stays_broken_ends_in_a_typed_error(
    action: Callable[[bytes], Sequence[bytes | Trouble]], kind: type[PrfaasError]
) -> None:
    faults = At(3, action, times=1000)
    error = await outcome(faults, fast(max_resumes=2))
    assert isinstance(error, kind)
    assert faults.struck >= 3  # the first try and two resumes; a lane in flight carries more damaged frames than one


async def test_resends_are_bounded_by_what_was_in_flight() -> None:
    """A cut costs the frames that the connection held: no chunk that has landed is sent again."""
    source = source_of(hybrid_offer(tokens=2000), step_tokens=100)
    async with MemoryHarness(At(20, cut)).join(FakeHandler(source), fast()) as ends:
        result = await ends.transport.fetch(order_of(2000), ends.address, KeepingSink())
        assert result.resumes == 1
        assert ends.sender_counters()["resent_chunks"] <= 4  # in the queue (2), in the mover's hand, being cut


async def test_a_receiver_that_dies_costs_one_lease() -> None:
    """No goodbye, no resume: the source is released when the lease has run out, and not before."""
    source = source_of(hybrid_offer(tokens=300))
    async with MemoryHarness().join(FakeHandler(source), fast(lease_s=0.4)) as ends:
        # A receiver that stops reading without closing anything is one whose event loop has died.
        order = messages.to_pb_order(order_of(300), TransferId("0" * 32)).SerializeToString()
        service_stream = ends.sender.prefill(order, 0)
        assert await service_stream.read() is not None
        await asyncio.sleep(0.2)
        assert source.released == []
        async with asyncio.timeout(5):
            await source.was_released.wait()
        assert source.released == [False]
        assert ends.sender_counters()["active_transfers"] == 0
        service_stream.cancel()


async def test_a_resume_after_the_lease_is_refused() -> None:
    source = source_of(hybrid_offer(tokens=300))
    async with MemoryHarness().join(FakeHandler(source), fast(lease_s=0.1)) as ends:
        await ends.transport.fetch(order_of(300), ends.address, KeepingSink())
        await settled(ends, source)
        stream = ends.sender.attach(Attach(TransferId("gone"), 0, True))
        with pytest.raises(TransferGone):
            await stream.read()


async def test_the_sender_closing_ends_the_fetch() -> None:
    source = source_of()
    source.script = Script(hang_after=2)
    harness = MemoryHarness()
    async with harness.join(FakeHandler(source), fast()) as ends:
        fetch = asyncio.create_task(ends.transport.fetch(order_of(), ends.address, KeepingSink()))
        await source.was_read.wait()
        await ends.close_sender()
        assert isinstance(await failure_of(fetch), TransferGone)
        await settled(ends, source)
