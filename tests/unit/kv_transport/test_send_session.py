"""What a sender cuts, resends, helps with and refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_transport.api import Offer
from kv_transport.session.coverage import Coverage, range_bytes
from kv_transport.session.sender import MIN_CHUNK_BYTES, SenderState
from kv_transport.testing.sources import full_group, hybrid_offer, plan_of, ranges_of
from prfaas.errors import EngineFailed, ProtocolViolation
from prfaas.modelspec import KvRange
from tests.support.sessions import FIRST, header_of, sender_of


@given(limit=st.integers(1, 20_000), step=st.integers(0, 60), tokens=st.integers(1, 60))
def test_chunks_respect_the_limit_and_are_made_of_ready_parts(limit: int, step: int, tokens: int) -> None:
    offer = hybrid_offer(tokens=tokens)
    sender = sender_of(offer, limit)
    for part in ranges_of(offer, step):
        sender.ready(part)
    lane = sender.attach(0)
    seen = Coverage(offer)
    while (chunk := sender.next_chunk(lane)) is not None:
        plan = offer.groups[chunk.group_index]
        one_entry = (
            range_bytes(plan, replace(chunk.range, layer_stop=chunk.range.layer_start + 1))
            if (plan.group.is_state or chunk.range.token_stop - chunk.range.token_start == 1)
            else 0
        )
        assert chunk.raw_bytes <= max(limit, one_entry)
        assert sum(range_bytes(plan, part) for part in chunk.parts) == chunk.raw_bytes == seen.add(chunk.range)
        assert [p.layer_start for p in chunk.parts[1:]] == [p.layer_stop for p in chunk.parts[:-1]]
    assert seen.complete


def test_small_neighbouring_layers_merge_under_load_and_leave_at_once_when_idle() -> None:
    offer = hybrid_offer(tokens=8)
    layers = [part for part in ranges_of(offer) if part.group == "full"]
    busy, idle = sender_of(offer), sender_of(offer)
    lane = busy.attach(0)
    for part in layers:
        busy.ready(part)
    merged = busy.next_chunk(lane)
    assert merged is not None
    assert merged.range == replace(layers[0], layer_stop=len(layers))
    lane = idle.attach(0)
    for part in layers:
        idle.ready(part)
        single = idle.next_chunk(lane)
        assert single is not None
        assert single.range == part


def test_chunks_shrink_on_slow_lanes_and_towards_the_end() -> None:
    offer = hybrid_offer(tokens=4000, width=1024)
    sender = sender_of(offer, 1024**2)
    assert sender.chunk_limit() == 1024**2
    assert sender.chunk_limit(lane_bytes_per_s=1e6) == 250_000
    assert sender.chunk_limit(lane_bytes_per_s=10.0) == MIN_CHUNK_BYTES
    for lane in range(4):
        sender.attach(lane)
    for part in ranges_of(offer):
        sender.ready(part)
    sizes = []
    while sender.next_chunk(1) is not None:
        sizes.append(sender.chunk_limit())
    assert sizes[0] == 1024**2
    assert sizes[-1] == MIN_CHUNK_BYTES


def test_an_idle_lane_helps_with_what_a_slow_lane_has_in_hand() -> None:
    offer = Offer(4, 0, (plan_of(full_group(2), 0, 4),))
    sender = sender_of(offer, 4 * 128)
    slow, idle = sender.attach(0), sender.attach(1)
    for part in ranges_of(offer):
        sender.ready(part)
    first, second = sender.next_chunk(slow), sender.next_chunk(slow)
    assert first is not None
    assert second is not None
    assert sender.steal(idle) is None  # more may come
    sender.computed(FIRST)
    assert sender.steal(idle) is None  # not framed yet
    for chunk in (first, second):
        sender.framed(chunk.seq, header_of(chunk), chunk.raw_bytes)
    assert sender.steal(slow) is None
    sender.left(first.seq)
    assert sender.steal(idle) is second
    assert sender.steal(idle) is None
    assert sender.helped_chunks == 1


def test_the_sender_holds_its_source_to_the_offer() -> None:
    offer = hybrid_offer()
    ranges = ranges_of(offer)
    sender = sender_of(offer)
    sender.ready(ranges[0])
    for wrong in (ranges[0], replace(ranges[0], group="other"), replace(ranges[1], token_stop=101)):
        with pytest.raises(EngineFailed):
            sender.ready(wrong)
    with pytest.raises(EngineFailed, match="missing"):
        sender.computed(FIRST)
    for part in ranges[1:]:
        sender.ready(part)
    sender.computed(FIRST)
    with pytest.raises(EngineFailed, match="computed"):
        sender.ready(ranges[0])


def test_a_changed_cache_is_not_sent_as_a_resend() -> None:
    offer = hybrid_offer()
    sender = sender_of(offer)
    sender.ready(ranges_of(offer)[0])
    chunk = sender.next_chunk(sender.attach(0))
    assert chunk is not None
    sender.framed(0, b"one", 10)
    sender.framed(0, b"one", 10)
    assert sender.wire_bytes == 10
    with pytest.raises(EngineFailed, match="changed"):
        sender.framed(0, b"two", 10)


def test_the_sender_refuses_impossible_resumes_and_closed_attachments() -> None:
    sender = sender_of(hybrid_offer())
    with pytest.raises(ProtocolViolation, match="never sent"):
        sender.resume([(0, 1)], [0])
    first = sender.attach(1)
    second = sender.attach(1)
    assert not sender.is_attached(1, first)
    sender.detach(1, first)
    assert sender.is_attached(1, second)
    sender.close()
    assert sender.state is SenderState.CLOSED
    with pytest.raises(ProtocolViolation, match="closed"):
        sender.attach(0)


def test_no_digest_before_everything_is_framed() -> None:
    offer = Offer(4, 0, (plan_of(full_group(1), 0, 4),))
    sender = sender_of(offer)
    sender.ready(ranges_of(offer)[0])
    assert sender.digest() is None
    sender.computed(FIRST)
    chunk = sender.next_chunk(sender.attach(0))
    assert chunk is not None
    assert sender.digest() is None
    sender.framed(chunk.seq, header_of(chunk), chunk.raw_bytes)
    assert sender.digest() is not None


def test_a_resume_asks_only_for_what_its_own_lane_and_those_given_up_carried() -> None:
    sender = sender_of(hybrid_offer(tokens=300))
    sender.ready(KvRange("full", 0, 4, 0, 300))
    attachments = [sender.attach(lane) for lane in range(3)]
    carried = [sender.next_chunk(attachment) for attachment in attachments * 2]
    assert None not in carried
    sender.detach(0, attachments[0])
    sender.detach(1, attachments[1])
    sender.attach(0)
    assert sender.resume([(0, 1)], [0]) == 1  # chunk 3; chunks 1 and 4 are lane 1's, chunks 2 and 5 are on their way
    assert sender.resume([(0, 1)], [0]) == 0
    assert sender.resume([(0, 2)], [0, 1]) == 1
    assert sender.resent_chunks == 2
