"""Turns and budgets: who goes next, how much is in flight, and that nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport.links import Path
from kv_transport.session.lane_tuner import LaneTuner
from kv_transport.session.rate import RateMeter, TokenBucket
from kv_transport.session.send_order import QUANTUM_BYTES, SendBudget, SendOrder, Ticket, Traffic
from prfaas.types import SiteId

HERE, THERE = SiteId("here"), SiteId("there")
MIB = 1024**2


def order_of(**changes: object) -> SendOrder:
    fields: dict[str, object] = {"own_site": HERE, "turns": 2, "in_flight_bytes": 100 * MIB}
    return SendOrder(SendBudget(**(fields | changes)))  # type: ignore[arg-type]


def traffic(key: str, *, deadline_s: float | None = None, tenant: str = "", total: int = 0) -> Traffic:
    return Traffic(key, tenant, THERE, deadline_s, total)


def serve(order: SendOrder, ticket: Ticket, now_s: float = 0.0) -> None:
    order.done(ticket, ticket.num_bytes, now_s)


def test_turns_are_bounded_and_first_come_first_served_among_equals() -> None:
    order = order_of()
    tickets = [order.submit(traffic(str(i)), MIB) for i in range(4)]
    assert order.admit(0.0) == tickets[:2]
    assert order.admit(0.0) == []
    serve(order, tickets[0])
    assert order.admit(0.0) == [tickets[2]]


def test_whoever_has_been_served_least_goes_first() -> None:
    order = order_of(turns=1)
    old, new = traffic("old"), traffic("new")
    for _ in range(8):
        ticket = order.submit(old, MIB)
        assert order.admit(0.0) == [ticket]
        serve(order, ticket)
    assert old.served_bytes == 2 * QUANTUM_BYTES
    waiting = order.submit(old, MIB)
    for _ in range(4):
        small = order.submit(new, MIB)
        assert order.admit(0.0) == [small]
        serve(order, small)
    assert order.admit(0.0) == [waiting]


def test_a_transfer_about_to_miss_its_deadline_goes_before_all_others() -> None:
    order = order_of(turns=1)
    calm, later, sooner = traffic("c", deadline_s=100.0), traffic("l", deadline_s=10.4), traffic("s", deadline_s=10.3)
    sooner.served_bytes = later.served_bytes = 50 * MIB
    tickets = [order.submit(t, MIB) for t in (calm, later, sooner)]
    admitted = []
    for _ in range(3):
        (ticket,) = order.admit(10.0)
        admitted.append(ticket)
        serve(order, ticket, 10.0)
    assert admitted == [tickets[2], tickets[1], tickets[0]]


def test_a_blocked_turn_is_given_on_while_its_bytes_stay_counted() -> None:
    order = order_of(turns=1)
    stuck, other = order.submit(traffic("stuck"), MIB), order.submit(traffic("other"), MIB)
    assert order.admit(0.0) == [stuck]
    order.yield_turn(stuck)
    assert order.admit(0.0) == [other]
    assert order.in_flight_bytes == 2 * MIB
    serve(order, stuck)
    serve(order, other)
    assert order.in_flight_bytes == 0


def test_bytes_in_flight_are_bounded_but_nobody_is_shut_out() -> None:
    order = order_of(turns=10, in_flight_bytes=2 * MIB)
    greedy, modest = traffic("greedy"), traffic("modest")
    for _ in range(4):
        order.submit(greedy, MIB)
    assert len(order.admit(0.0)) == 2
    first = order.submit(modest, MIB)
    assert order.admit(0.0) == [first]
    assert order.ready_in_s(0.0) is None


@pytest.mark.parametrize("by", ["site", "tenant"])
def test_an_egress_budget_is_kept_to_the_byte_in_the_long_run(by: str) -> None:
    rate = 10 * MIB
    budget: dict[str, object] = {"site_bytes_per_s": rate} if by == "site" else {"tenant_bytes_per_s": {"t": rate}}
    order = order_of(**budget)
    flow = traffic("a", tenant="t")
    now_s, sent = 0.0, 0
    while now_s < 10.0:
        order.submit(flow, MIB)
        (ticket,) = order.admit(now_s)
        serve(order, ticket, now_s)
        sent += MIB
        pending = order.submit(flow, MIB)
        wait_s = order.ready_in_s(now_s)
        assert wait_s is not None
        order.withdraw(pending, now_s)
        now_s += wait_s + 1e-9
    assert sent / now_s == pytest.approx(rate, rel=0.02)


def test_traffic_inside_the_site_and_of_other_tenants_is_not_capped() -> None:
    order = order_of(turns=100, site_bytes_per_s=1, tenant_bytes_per_s={"t": 1})
    inside = Traffic("inside", "", HERE)
    for _ in range(5):
        order.submit(inside, MIB)
    assert len(order.admit(0.0)) == 5


def test_what_a_codec_saves_is_not_charged() -> None:
    order = order_of(site_bytes_per_s=MIB)
    flow = traffic("a")
    ticket = order.submit(flow, MIB)
    assert order.admit(0.0) == [ticket]
    order.done(ticket, MIB // 2, 0.0)
    order.submit(flow, MIB)
    assert order.ready_in_s(0.0) == pytest.approx(0.48, abs=0.01)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["submit", "admit", "done", "withdraw", "yield"]), st.integers(0, 7)), max_size=80))
def test_nothing_is_lost_whatever_happens(actions: list[tuple[str, int]]) -> None:
    order = order_of(turns=3, in_flight_bytes=4 * MIB)
    flows = [traffic(str(i)) for i in range(3)]
    alive: list[Ticket] = []
    for step, (name, which) in enumerate(actions):
        now_s = step * 0.01
        ticket = alive[which % len(alive)] if alive else None
        if name == "submit":
            alive.append(order.submit(flows[which % 3], MIB))
        elif name == "admit":
            order.admit(now_s)
        elif ticket is not None and name == "yield":
            order.yield_turn(ticket)
        elif ticket is not None and (name == "withdraw" or ticket.admitted):
            alive.remove(ticket)
            order.done(ticket, MIB, now_s) if name == "done" else order.withdraw(ticket, now_s)
        in_flight = sum(t.num_bytes for t in alive if t.admitted)
        assert order.in_flight_bytes == in_flight == sum(flow.in_flight_bytes for flow in flows)
        assert order.num_waiting == sum(not t.admitted for t in alive) == sum(flow.waiting for flow in flows)
        assert sum(t.has_turn for t in alive) <= 3
        assert in_flight <= 4 * MIB + 3 * MIB
    for ticket in alive:
        order.withdraw(ticket, 99.0)
        order.withdraw(ticket, 99.0)
    assert order.in_flight_bytes == order.num_waiting == 0


def test_a_rate_is_of_busy_time_only() -> None:
    meter = RateMeter()
    assert meter.bytes_per_s == 0
    for step in range(100):
        meter.add(1000, step * 0.01)
    assert meter.bytes_per_s == pytest.approx(100_000, rel=0.05)
    meter.add(10**9, 100.0)
    assert meter.bytes_per_s == pytest.approx(100_000, rel=0.05)


def test_on_a_slow_path_chunks_far_apart_tell_its_speed_while_others_wait() -> None:
    path = Path(SiteId("far"), SiteId("pd"), LaneTuner(max_lanes=1), 0.0)
    for step in range(100):
        path.landed(1000, step * 0.01)
    path.queued(9_000_000)
    for second in range(2, 11):  # a megabyte every second
        path.queued(-1_000_000)
        path.landed(1_000_000, float(second))
    assert path.view(10.0).goodput_bytes_per_s == pytest.approx(1_000_000, rel=0.15)
    path.queued(1_000_000)
    path.queued(-1_000_000)
    path.landed(1_000_000, 60.0)
    assert path.view(60.0).goodput_bytes_per_s == pytest.approx(1_000_000, rel=0.15), "nothing waited for most of a minute"


def test_a_chunk_that_is_on_its_way_all_the_while_tells_a_slow_paths_speed() -> None:
    order, there = order_of(), traffic("t")
    tickets = [order.submit(there, MIB) for _ in range(12)]
    order.admit(0.0)
    for second, ticket in enumerate(tickets, start=1):
        order.done(ticket, MIB, float(second))
        order.admit(float(second))
    assert order.site_bytes_per_s(there.site) == pytest.approx(MIB, rel=0.01)
    late = order.submit(there, MIB)
    order.admit(100.0)
    order.done(late, MIB, 100.001)
    assert order.site_bytes_per_s(there.site) == pytest.approx(MIB, rel=0.01), "a pause is not slowness"


def test_a_bucket_waits_off_its_debt() -> None:
    bucket = TokenBucket(1000.0, burst_s=0.1)
    assert bucket.ready_in_s(0.0) == 0
    bucket.take(600, 0.0)
    assert bucket.ready_in_s(0.0) == pytest.approx(0.501)
    assert bucket.ready_in_s(0.6) == 0
