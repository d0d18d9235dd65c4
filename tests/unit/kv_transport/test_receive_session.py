"""What a receiver takes in, and what it refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transport.api import Offer
from kv_transport.session.coverage import IntervalSet, offer_bytes
from kv_transport.session.receiver import ReceiverState, ReceiveSession
from kv_transport.testing.sources import hybrid_offer, plan_of, ranges_of, state_group
from prfaas.errors import DigestMismatch, ProtocolViolation
from prfaas.modelspec import KvRange
from tests.support.sessions import FIRST, MANIFEST, arrival_of, header_of, land, receiver_of, sender_of, whole_chunks


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=40))
def test_interval_set_is_a_set(pieces: list[tuple[int, int]]) -> None:
    intervals, model = IntervalSet(), set[int]()
    for start, length in pieces:
        piece = set(range(start, start + length))
        assert intervals.overlaps(start, start + length) == bool(piece & model)
        assert intervals.add(start, start + length) == (not piece & model)
        if not piece & model:
            model |= piece
        assert intervals.total == len(model)
        assert {v for a, b in intervals.intervals() for v in range(a, b)} == model
        assert all(b < c for (_, b), (c, _) in zip(intervals.intervals(), intervals.intervals()[1:], strict=False))


def test_nothing_but_the_queue_comes_before_the_manifest() -> None:
    receiver = ReceiveSession()
    receiver.waiting("queued")
    with pytest.raises(ProtocolViolation, match="while waiting"):
        land(receiver, whole_chunks(hybrid_offer())[0])
    with pytest.raises(ProtocolViolation, match="before the manifest"):
        receiver.first(FIRST)
    with pytest.raises(ProtocolViolation, match="before the manifest"):
        receiver.digest(0, b"")


def test_the_receiver_refuses_what_contradicts_the_manifest_or_itself() -> None:
    offer = hybrid_offer()
    receiver = receiver_of(offer)
    chunk = whole_chunks(offer)[0]
    with pytest.raises(ProtocolViolation, match="after the manifest"):
        receiver.manifest(offer, MANIFEST)
    for wrong, why in (
        (replace(chunk, group_index=9), "out of bounds"),
        (replace(chunk, seq=1 << 20), "out of bounds"),
        (replace(chunk, raw_bytes=chunk.raw_bytes + 1), "has"),
        (replace(chunk, range=replace(chunk.range, layer_stop=99)), "layers outside"),
        (replace(chunk, range=replace(chunk.range, token_stop=101)), "tokens outside"),
        (replace(chunk, range=replace(chunk.range, token_stop=0)), "tokens outside"),
        (replace(chunk, group_index=1, range=KvRange("state", 0, 1, 50, 50)), "not an offered state"),
    ):
        with pytest.raises(ProtocolViolation, match=why):
            receiver.accept(arrival_of(wrong), header_of(wrong))
    assert land(receiver, chunk)
    with pytest.raises(ProtocolViolation, match="overlaps"):
        land(receiver, replace(chunk, seq=5))
    with pytest.raises(ProtocolViolation, match="differs"):
        receiver.accept(arrival_of(chunk), b"another header")
    receiver.first(FIRST)
    with pytest.raises(ProtocolViolation, match="differ"):
        receiver.first(b"others")
    receiver.digest(3, b"x")
    with pytest.raises(ProtocolViolation, match="differs"):
        receiver.digest(4, b"x")
    assert receiver.state is ReceiverState.STREAMING


@pytest.mark.parametrize("damage", ["hash", "count", "first", "manifest", "header"])
def test_the_digest_covers_manifest_headers_and_tokens(damage: str) -> None:
    offer = hybrid_offer()
    chunks = whole_chunks(offer)
    sender = sender_of(offer)
    for part in ranges_of(offer):
        sender.ready(part)
    sender.computed(FIRST)
    lane = sender.attach(0)
    while (chunk := sender.next_chunk(lane)) is not None:
        sender.framed(chunk.seq, header_of(chunk) + (b"!" if damage == "header" and chunk.seq == 1 else b""), 1)
    digest = sender.digest()
    assert digest is not None
    receiver = ReceiveSession()
    receiver.manifest(offer, b"other" if damage == "manifest" else MANIFEST)
    for chunk in chunks:
        land(receiver, chunk)
    receiver.first(b"other" if damage == "first" else FIRST)
    with pytest.raises(DigestMismatch):
        receiver.digest(len(chunks) + (damage == "count"), bytes(32) if damage == "hash" else digest)
    assert receiver.state is ReceiverState.STREAMING


def test_several_states_of_one_group() -> None:
    offer = Offer(128, 0, (plan_of(state_group(), 128, 128, (64, 128)),))
    chunks = whole_chunks(offer)
    receiver = receiver_of(offer)
    for chunk in reversed(chunks):
        assert land(receiver, chunk)
    assert receiver.landed_bytes == offer_bytes(offer) == 2 * 3 * (256 * 4 + 48)
