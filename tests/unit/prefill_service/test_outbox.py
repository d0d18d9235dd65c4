"""Whatever the order and size of an engine's reports, what was offered comes out exactly once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefill_service.outbox import Outbox
from prfaas.engine.api import LayersReady
from prfaas.errors import EngineFailed
from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, KvRange, TensorSpec

ENTRY = (TensorSpec("kv", (2, 4), DType.BF16),)
NUM_LAYERS = 7
HYBRID = CacheSpec(
    groups=(
        CacheGroup("full", GroupKind.FULL, (1, 4), ENTRY),
        CacheGroup("window", GroupKind.SLIDING, (3, 6), ENTRY, window_tokens=9),
        CacheGroup("state", GroupKind.STATE, (0, 2, 5), ENTRY),
    ),
    block_tokens=4,
)


@dataclass(frozen=True)
class Prefill:
    """A prompt, and the sizes in which an engine reports it: tokens per chunk, layers per report."""

    num_tokens: int
    held_tokens: int
    cached_tokens: int
    chunk_tokens: int
    layer_step: int
    repeats_cached: bool


@st.composite
def prefills(draw: st.DrawFn) -> Prefill:
    num_tokens = draw(st.integers(1, 60))
    return Prefill(
        num_tokens=num_tokens,
        held_tokens=draw(st.integers(0, num_tokens - 1)),
        cached_tokens=draw(st.integers(0, num_tokens - 1)),
        chunk_tokens=draw(st.integers(1, 20)),
        layer_step=draw(st.integers(1, NUM_LAYERS)),
        repeats_cached=draw(st.booleans()),
    )


def reports(prefill: Prefill) -> list[LayersReady]:
    """What an engine says. Some engines report the cached prefix too, some only what they computed."""
    found = []
    start = 0 if prefill.repeats_cached else prefill.cached_tokens
    while start < prefill.num_tokens:
        stop = min(start + prefill.chunk_tokens, prefill.num_tokens)
        for layer in range(0, NUM_LAYERS, prefill.layer_step):
            found.append(LayersReady(layer, min(layer + prefill.layer_step, NUM_LAYERS), start, stop))
        start = stop
    return found


def entries(group: CacheGroup, piece: KvRange) -> list[tuple[str, int, int]]:
    """Every (group, layer, position) of a range; a state counts as the position it was taken at."""
    positions = [piece.token_stop] if group.is_state else list(range(piece.token_start, piece.token_stop))
    return [(group.name, layer, p) for layer in range(piece.layer_start, piece.layer_stop) for p in positions]


@given(prefills())
def test_every_offered_entry_comes_out_once(prefill: Prefill) -> None:
    outbox = Outbox(HYBRID, num_tokens=prefill.num_tokens, held_tokens=prefill.held_tokens)
    offer = outbox.offer(prefill.cached_tokens)
    offered = []
    for plan in offer.groups:
        for stop in plan.state_positions or (plan.token_stop,):
            everything = KvRange(plan.group.name, 0, len(plan.group.layers), plan.token_start, stop)
            offered += entries(plan.group, everything)
    given_out = []
    for ranges in [outbox.cached(prefill.cached_tokens), *(outbox.ready(report) for report in reports(prefill))]:
        for piece in ranges:
            given_out += entries(HYBRID.group(piece.group), piece)
    assert sorted(given_out) == sorted(offered)
    assert outbox.complete


@given(prefills())
def test_nothing_comes_out_before_it_is_computed(prefill: Prefill) -> None:
    outbox = Outbox(HYBRID, num_tokens=prefill.num_tokens, held_tokens=prefill.held_tokens)
    for piece in outbox.cached(prefill.cached_tokens):
        assert not HYBRID.group(piece.group).is_state
        assert piece.token_stop <= prefill.cached_tokens
    for report in reports(prefill):
        for piece in outbox.ready(report):
            layers = HYBRID.group(piece.group).layers[piece.layer_start : piece.layer_stop]
            assert all(report.layer_start <= layer < report.layer_stop for layer in layers)
            assert piece.token_stop <= report.token_stop
            assert piece.token_start >= prefill.held_tokens


@given(prefills())
def test_the_offer_is_what_the_paper_counts(prefill: Prefill) -> None:
    outbox = Outbox(HYBRID, num_tokens=prefill.num_tokens, held_tokens=prefill.held_tokens)
    total = sum(p.group.bytes_between(p.token_start, p.token_stop) for p in outbox.offer(0).groups)
    assert total == HYBRID.request_bytes(prefill.num_tokens, prefill.held_tokens)


def test_layers_come_out_in_the_order_they_are_computed() -> None:
    outbox = Outbox(HYBRID, num_tokens=8, held_tokens=0)
    ranges = outbox.ready(LayersReady(0, NUM_LAYERS, 0, 8))
    first_layers = [HYBRID.group(r.group).layers[r.layer_start] for r in ranges]
    assert first_layers == sorted(first_layers)


def test_an_unfinished_prompt_is_not_complete() -> None:
    outbox = Outbox(HYBRID, num_tokens=8, held_tokens=4)
    outbox.ready(LayersReady(0, NUM_LAYERS, 0, 7))
    assert not outbox.complete


def test_a_hole_in_the_reports_is_an_error() -> None:
    outbox = Outbox(HYBRID, num_tokens=40, held_tokens=0)
    outbox.ready(LayersReady(0, NUM_LAYERS, 0, 10))
    with pytest.raises(EngineFailed, match="10 to 20"):
        outbox.ready(LayersReady(0, NUM_LAYERS, 20, 30))


def test_states_at_a_boundary_are_offered_and_given_out_once() -> None:
    outbox = Outbox(HYBRID, num_tokens=30, held_tokens=8)
    offer = outbox.offer(0, snapshot_tokens=28)
    assert [plan.state_positions for plan in offer.groups] == [(), (), (28, 30)]
    outbox.ready(LayersReady(0, NUM_LAYERS, 0, 30))
    assert not outbox.complete
    assert outbox.snapshot(24) == ()
    assert outbox.snapshot(28) == (KvRange("state", 0, 3, 28, 28),)
    assert outbox.snapshot(28) == ()
    assert outbox.complete


def test_states_that_the_receiver_may_have_are_not_offered() -> None:
    outbox = Outbox(HYBRID, num_tokens=30, held_tokens=28)
    assert outbox.offer(0, snapshot_tokens=28).groups[2].state_positions == (30,)
    assert outbox.snapshot(28) == ()
