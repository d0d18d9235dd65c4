"""The two state machines against each other: whatever the lanes do, the transfer ends complete and exact."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport.api import Offer
from kv_transport.session.chunks import Chunk
from kv_transport.session.coverage import Coverage, IntervalSet, offer_bytes, range_bytes
from kv_transport.session.receiver import Arrival, ReceiverState, ReceiveSession
from kv_transport.session.sender import MIN_CHUNK_BYTES, SenderState, SendSession
from kv_transport.testing.sources import full_group, hybrid_offer, plan_of, ranges_of, state_group
from prfaas.errors import DigestMismatch, EngineFailed, ProtocolViolation
from prfaas.modelspec import KvRange

MANIFEST = b"manifest"
FIRST = b"first"


def header_of(chunk: Chunk) -> bytes:
    part = chunk.range
    return repr((chunk.seq, part.group, part.layer_start, part.layer_stop, part.token_start, part.token_stop)).encode()


def arrival_of(chunk: Chunk) -> Arrival:
    part = chunk.range
    return Arrival(
        chunk.seq, chunk.group_index, part.layer_start, part.layer_stop, part.token_start, part.token_stop, chunk.raw_bytes
    )


def land(receiver: ReceiveSession, chunk: Chunk) -> bool:
    placement = receiver.accept(arrival_of(chunk), header_of(chunk))
    if placement is None:
        return False
    receiver.landed(arrival_of(chunk), header_of(chunk), placement)
    return True


def sender_of(offer: Offer, chunk_bytes: int = 4096) -> SendSession:
    return SendSession(offer, MANIFEST, chunk_bytes=chunk_bytes)


def receiver_of(offer: Offer) -> ReceiveSession:
    receiver = ReceiveSession()
    receiver.manifest(offer, MANIFEST)
    return receiver


@dataclass
class Net:
    """Lanes with chunks in flight; every action of the machine under test is one method."""

    offer: Offer
    sender: SendSession
    receiver: ReceiveSession
    unreported: deque[KvRange]
    lanes: dict[int, int] = field(default_factory=dict)
    flying: dict[int, list[Chunk]] = field(default_factory=dict)
    sent: int = 0
    landed: int = 0
    given_up: set[int] = field(default_factory=set)

    def report(self) -> None:
        if self.unreported:
            self.sender.ready(self.unreported.popleft())
            if not self.unreported:
                self.sender.computed(FIRST)

    def attach(self, lane: int, *, resume: bool) -> None:
        self.lanes[lane] = self.sender.attach(lane)
        self.flying[lane] = []
        if resume:
            self.sender.resume(self.receiver.received(), {lane, *self.given_up})

    def send(self, lane: int) -> None:
        if lane not in self.lanes:
            self.attach(lane, resume=False)
        chunk = self.sender.next_chunk(self.lanes[lane])
        if chunk is not None:
            self.sender.framed(chunk.seq, header_of(chunk), chunk.raw_bytes)
            self.flying[lane].append(chunk)
            self.sent += 1

    def deliver(self, lane: int, which: int, *, twice: bool) -> None:
        flying = self.flying.get(lane)
        if flying:
            chunk = flying.pop(which % len(flying))
            self.landed += land(self.receiver, chunk)
            if twice:
                assert not land(self.receiver, chunk)

    def cut(self, lane: int) -> None:
        if lane in self.lanes:
            self.sender.detach(lane, self.lanes.pop(lane))
            self.flying[lane] = []

    def finish(self) -> None:
        """What every schedule ends with: all is reported, lane 0 resumes and carries the rest."""
        while self.unreported:
            self.report()
        for lane in list(self.lanes):
            self.cut(lane)
        self.given_up = {1, 2, 3}
        self.attach(0, resume=True)
        while self.sender.has_work:
            self.send(0)
            self.deliver(0, 0, twice=False)


ACTIONS = st.one_of(
    st.tuples(st.just("report")),
    st.tuples(st.just("send"), st.integers(0, 3)),
    st.tuples(st.just("deliver"), st.integers(0, 3), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("cut"), st.integers(0, 3)),
    st.tuples(st.just("resume"), st.integers(0, 3)),
)


@settings(max_examples=150, deadline=None)
@given(
    actions=st.lists(ACTIONS, max_size=120),
    step=st.sampled_from([0, 7, 64]),
    chunk=st.sampled_from([1, 300, 4096, 10**6]),
    tokens=st.integers(1, 90),
)
def test_any_schedule_ends_complete(actions: list[tuple[object, ...]], step: int, chunk: int, tokens: int) -> None:
    offer = hybrid_offer(tokens=tokens)
    net = Net(offer, sender_of(offer, chunk), receiver_of(offer), deque(ranges_of(offer, step)))
    for name, *arguments in actions:
        if name == "report":
            net.report()
        elif name == "send":
            net.send(int(arguments[0]))  # type: ignore[call-overload]
        elif name == "deliver":
            net.deliver(int(arguments[0]), int(arguments[1]), twice=bool(arguments[2]))  # type: ignore[call-overload]
        elif name == "cut":
            net.cut(int(arguments[0]))  # type: ignore[call-overload]
        else:
            net.attach(int(arguments[0]), resume=True)  # type: ignore[call-overload]
        assert net.receiver.landed_bytes <= net.sender.cut_bytes <= net.sender.ready_bytes <= net.sender.total_bytes
        assert net.receiver.num_landed == net.landed
        assert net.receiver.state is ReceiverState.STREAMING
    net.finish()
    digest = net.sender.digest()
    assert digest is not None
    net.receiver.first(FIRST)
    net.receiver.digest(net.sender.num_chunks, digest)
    assert net.receiver.state is ReceiverState.COMPLETE
    assert net.receiver.landed_bytes == offer_bytes(offer) == net.sender.wire_bytes
    assert net.landed == net.sender.num_chunks
    assert net.sent <= net.sender.num_chunks + net.sender.resent_chunks


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


def whole_chunks(offer: Offer) -> list[Chunk]:
    sender = sender_of(offer)
    for part in ranges_of(offer):
        sender.ready(part)
    lane = sender.attach(0)
    chunks = []
    while (chunk := sender.next_chunk(lane)) is not None:
        chunks.append(chunk)
    return chunks


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
