"""The two state machines against each other: whatever the lanes do, the transfer ends complete and exact."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport.api import Offer
from kv_transport.session.chunks import Chunk
from kv_transport.session.coverage import offer_bytes
from kv_transport.session.receiver import ReceiverState, ReceiveSession
from kv_transport.session.sender import SendSession
from kv_transport.testing.sources import hybrid_offer, ranges_of
from prfaas.modelspec import KvRange
from tests.support.sessions import FIRST, header_of, land, receiver_of, sender_of


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
    assert net.sent <= net.sender.num_chunks + net.sender.resent_chunks
