"""Only what is missing, and only where it belongs, reaches the engine's blocks."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence

import pytest

from decode_service.sink import LandingSink
from kv_transport.api import GroupPlan, Offer
from prfaas.errors import ProtocolViolation, TransferGone
from prfaas.modelspec import CacheGroup, DType, GroupKind, KvRange, TensorSpec
from tests.support.scripted import ENTRY, SPEC, ScriptedLanding, ScriptedStream, full_offer

NUM_TOKENS, HELD_TOKENS = 10, 4
GOOD = full_offer(NUM_TOKENS, HELD_TOKENS)


def landing() -> ScriptedLanding:
    return ScriptedLanding(ScriptedStream([]), HELD_TOKENS)


def begun(room: ScriptedLanding) -> LandingSink:
    sink = LandingSink(room, SPEC.cache, num_tokens=NUM_TOKENS)
    sink.begin(GOOD)
    return sink


def with_plan(index: int, **changes: object) -> Offer:
    groups = list(GOOD.groups)
    groups[index] = dataclasses.replace(groups[index], **changes)  # type: ignore[arg-type]
    return dataclasses.replace(GOOD, groups=tuple(groups))


OTHER_TENSOR = CacheGroup("full", GroupKind.FULL, (0,), (TensorSpec("kv", (5,), DType.F32),))
OTHER_LAYERS = CacheGroup("full", GroupKind.FULL, (0, 1), ENTRY)


@pytest.mark.parametrize(
    "offer",
    [
        dataclasses.replace(GOOD, num_tokens=11),
        dataclasses.replace(GOOD, groups=GOOD.groups[:1]),
        dataclasses.replace(GOOD, groups=(*GOOD.groups, GOOD.groups[0])),
        with_plan(0, token_start=5),  # a token short
        with_plan(0, token_start=3),  # over what others may be reading
        with_plan(0, token_stop=9),
        with_plan(0, wire_dtypes=()),
        with_plan(0, group=OTHER_TENSOR),
        with_plan(0, group=OTHER_LAYERS),
        with_plan(1, state_positions=()),
        with_plan(1, state_positions=(8,)),
        with_plan(1, state_positions=(HELD_TOKENS, NUM_TOKENS)),  # not beyond what is held
        with_plan(1, state_positions=(6, 8, NUM_TOKENS)),
    ],
)
def test_an_offer_must_be_exactly_what_is_missing(offer: Offer) -> None:
    with pytest.raises(ProtocolViolation):
        LandingSink(landing(), SPEC.cache, num_tokens=NUM_TOKENS).begin(offer)


def test_a_window_group_needs_only_its_window() -> None:
    window = CacheGroup("window", GroupKind.SLIDING, (0,), ENTRY, window_tokens=3)
    cache = dataclasses.replace(SPEC.cache, groups=(window,))
    plan = GroupPlan(window, 8, NUM_TOKENS, (), (DType.F32,))
    sink = LandingSink(landing(), cache, num_tokens=NUM_TOKENS)
    sink.begin(Offer(NUM_TOKENS, 0, (plan,)))
    with pytest.raises(ProtocolViolation):
        sink.begin(Offer(NUM_TOKENS, 0, (dataclasses.replace(plan, token_start=HELD_TOKENS),)))


def test_other_wire_dtypes_are_welcome() -> None:
    LandingSink(landing(), SPEC.cache, num_tokens=NUM_TOKENS).begin(with_plan(0, wire_dtypes=(DType.F8,)))


def test_offered_ranges_reach_the_landing() -> None:
    room = landing()
    sink = begun(room)
    ranges = [KvRange("full", 0, 1, 4, 7), KvRange("full", 0, 1, 7, 10), KvRange("state", 0, 1, 10, 10)]
    for piece in ranges:
        sink.write(piece, memoryview(b""), (DType.F32,))
    assert room.written == ranges


@pytest.mark.parametrize(
    "piece",
    [
        KvRange("full", 0, 1, 3, 7),
        KvRange("full", 0, 1, 7, 11),
        KvRange("full", 0, 1, 7, 7),
        KvRange("full", 0, 2, 4, 7),
        KvRange("full", -1, 1, 4, 7),
        KvRange("state", 0, 1, 9, 9),
        KvRange("state", 0, 1, 9, 10),
        KvRange("nowhere", 0, 1, 4, 7),
    ],
)
def test_a_range_outside_the_offer_is_refused(piece: KvRange) -> None:
    room = landing()
    sink = begun(room)
    with pytest.raises(ProtocolViolation):
        sink.write(piece, memoryview(b""), (DType.F32,))
    assert room.written == []


def test_nothing_is_written_before_an_offer() -> None:
    room = landing()
    with pytest.raises(ProtocolViolation):
        LandingSink(room, SPEC.cache, num_tokens=NUM_TOKENS).write(KvRange("full", 0, 1, 4, 7), memoryview(b""), ())
    assert room.written == []


def test_nothing_is_written_after_close() -> None:
    room = landing()
    sink = begun(room)
    sink.close()
    sink.close()
    with pytest.raises(TransferGone):
        sink.write(KvRange("full", 0, 1, 4, 7), memoryview(b""), (DType.F32,))
    assert room.written == []


class SlowLanding(ScriptedLanding):
    """A landing whose copy takes until it is allowed to end."""

    def __init__(self) -> None:
        super().__init__(ScriptedStream([]), HELD_TOKENS)
        self.copying, self.proceed = threading.Event(), threading.Event()

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        self.copying.set()
        self.proceed.wait(10)
        super().write(landed, payload, dtypes)


def test_close_waits_for_a_copy_under_way() -> None:
    room = SlowLanding()
    sink = begun(room)
    piece = KvRange("full", 0, 1, 4, 7)
    writer = threading.Thread(target=sink.write, args=(piece, memoryview(b""), (DType.F32,)))
    writer.start()
    assert room.copying.wait(10)
    closer = threading.Thread(target=sink.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    room.proceed.set()
    closer.join(10)
    writer.join(10)
    assert room.written == [piece]


def test_states_at_an_earlier_boundary_may_come_along() -> None:
    into = landing()
    sink = LandingSink(into, SPEC.cache, num_tokens=NUM_TOKENS)
    sink.begin(GOOD)
    assert sink.snapshot_tokens == 0
    sink.begin(with_plan(1, state_positions=(8, NUM_TOKENS)))
    assert sink.snapshot_tokens == 8
    sink.write(KvRange("state", 0, 1, 8, 8), memoryview(bytes(16)), (DType.F32,))
    with pytest.raises(ProtocolViolation):
        sink.write(KvRange("state", 0, 1, 7, 7), memoryview(bytes(16)), (DType.F32,))
    assert into.written == [KvRange("state", 0, 1, 8, 8)]
