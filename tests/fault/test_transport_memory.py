"""Faults between the ends, at every frame of a transfer: the right bytes or a typed error, nothing left, counters moved."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from kv_transport import messages
from kv_transport.memory import Trouble
from kv_transport.messages import Attach
from kv_transport.testing.harness import MemoryHarness
from kv_transport.testing.sources import FakeHandler, KeepingSink, Script, hybrid_offer, order_of, source_of
from kv_transport.testing.suite import failure_of, settled
from prfaas.errors import (
    ChunkCorrupt,
    DigestMismatch,
    PrfaasError,
    ProtocolViolation,
    TransferBroken,
    TransferGone,
    TransferStalled,
)
from prfaas.types import TransferId
from tests.support.transport_faults import (
    FRAMES,
    Action,
    At,
    Reorder,
    SwapAt,
    cut,
    cut_after,
    drop,
    duplicate,
    end,
    fast,
    flip,
    outcome,
    stall,
    truncate,
)

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("number", range(FRAMES))
@pytest.mark.parametrize("action", [cut, cut_after, stall, flip, truncate, drop, end], ids=lambda action: action.__name__)
async def test_one_fault_anywhere(action: Action, number: int) -> None:
    """After the manifest every single fault heals. Before it there is nothing to resume: a typed error."""
    error = await outcome(At(number, action), fast())
    if error is None:
        assert number > 0 or action is cut_after
    elif number == 0:
        kinds = {stall: TransferStalled, cut: TransferBroken, end: TransferBroken}
        assert isinstance(error, kinds.get(action, ProtocolViolation)), error
    else:
        # A damaged control frame has no checksum of its own: it is noticed as malformed or by the digest.
        assert action in (flip, truncate)
        assert isinstance(error, ProtocolViolation | DigestMismatch), error


@pytest.mark.parametrize("number", [1, 5, 9])
@pytest.mark.parametrize("action", [cut, stall, flip, truncate], ids=lambda action: action.__name__)
async def test_a_fault_on_chunks_heals(action: Action, number: int) -> None:
    error = await outcome(At(number, action), fast())
    assert error is None or (action is truncate and isinstance(error, ProtocolViolation))


@pytest.mark.parametrize("action", [cut, stall, flip, truncate, end], ids=lambda action: action.__name__)
async def test_a_fault_while_the_order_is_queued_is_a_typed_error(action: Action) -> None:
    """Nothing was promised yet, so nothing resumes: the caller's ladder takes the next candidate."""
    error = await outcome(At(0, action), fast(), queue_events=1)
    if error is None:
        assert action is flip  # an estimate that is wrong harms nothing
    else:
        assert isinstance(error, TransferBroken | TransferStalled | ProtocolViolation), error


@pytest.mark.parametrize("number", range(FRAMES))
async def test_duplicates_are_harmless(number: int) -> None:
    """Of chunks, first tokens and digest. A second manifest is a violation."""
    error = await outcome(At(number, duplicate, times=4), fast())
    assert error is None if number else isinstance(error, ProtocolViolation)


@pytest.mark.parametrize("number", range(FRAMES))
async def test_a_frame_that_passes_another_is_harmless(number: int) -> None:
    """Only the manifest must come first."""
    error = await outcome(SwapAt(number), fast())
    assert error is None if number else isinstance(error, ProtocolViolation)


@pytest.mark.parametrize("number", range(FRAMES))
async def test_the_sender_dies_at_any_frame(number: int) -> None:
    """Every connection breaks and nobody answers again."""
    error = await outcome(At(number, cut, times=1000), fast(max_resumes=1))
    assert isinstance(error, TransferBroken)


@pytest.mark.parametrize("taken", [0, 1, 6, FRAMES - 2])
@pytest.mark.parametrize("how", ["silent", "gone"])
async def test_the_receiver_dies_after_any_frame(taken: int, how: str) -> None:
    """It stops reading, or its connection breaks; no goodbye, no resume: one lease later nothing is left."""
    source = source_of(hybrid_offer(tokens=300), step_tokens=128)
    async with MemoryHarness().join(FakeHandler(source), fast(lease_s=0.3)) as ends:
        order = messages.to_pb_order(order_of(300), TransferId("0" * 32)).SerializeToString()
        stream = ends.sender.prefill(order, 0)
        for _ in range(taken):
            assert await stream.read() is not None
        if how == "gone":
            await asyncio.sleep(0.05)
            stream.cancel()
        async with asyncio.timeout(5):
            await source.was_released.wait()
        assert source.released == [False]
        stream.cancel()  # as the dead receiver's connection is, once its keepalive fails
        await settled(ends, source)


@pytest.mark.parametrize("lanes", [1, 4])
async def test_reordering_is_harmless(lanes: int) -> None:
    assert await outcome(Reorder(), fast(lanes=lanes)) is None


@pytest.mark.parametrize("number", range(0, 16, 3))
@pytest.mark.parametrize("action", [cut, stall, flip], ids=lambda action: action.__name__)
async def test_faults_on_one_of_several_lanes(action: Action, number: int) -> None:
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
async def test_a_path_that_stays_broken_ends_in_a_typed_error(action: Action, kind: type[PrfaasError]) -> None:
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
