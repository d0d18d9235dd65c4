"""The admission queue: nobody is lost, nobody is served twice, and shares are fair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.errors import QueueFull, RateLimited
from router.policy.admission import LATE_SHARE, MAX_RETRY_S, SWEEP_TENANTS, AdmissionQueue, Budget, Budgets, Ticket


def drain(queue: AdmissionQueue, now_s: float = 0.0) -> list[int]:
    taken = []
    while (number := queue.take(now_s)) is not None:
        taken.append(number)
    return taken


def test_classes_go_first_to_last_and_within_one_tenant_in_order() -> None:
    queue = AdmissionQueue(10)
    numbers = [queue.offer(Ticket("t", priority, 10), 0.0) for priority in (7, 0, -3, 0)]
    assert drain(queue) == [numbers[2], numbers[1], numbers[3], numbers[0]]


def test_a_tenant_with_one_prompt_does_not_wait_behind_anothers_hundred() -> None:
    queue = AdmissionQueue(1000)
    crowd = [queue.offer(Ticket("crowd", 0, 1000), 0.0) for _ in range(100)]
    assert queue.take(0.0) == crowd[0]
    lone = queue.offer(Ticket("lone", 0, 1000), 0.0)
    assert lone in drain(queue)[:2]


def test_tenants_share_in_tokens_not_in_requests() -> None:
    queue = AdmissionQueue(10_000)
    owner = {}
    for _ in range(100):
        owner[queue.offer(Ticket("long", 0, 10_000), 0.0)] = 10_000
        for _ in range(10):
            owner[queue.offer(Ticket("short", 0, 1_000), 0.0)] = 1_000
    first = [owner[queue.take(0.0) or 0] for _ in range(550)]
    long_share = sum(t for t in first if t == 10_000) / sum(first)
    assert 0.45 <= long_share <= 0.55


def test_an_idle_class_forgets_old_debts() -> None:
    queue = AdmissionQueue(10)
    for _ in range(5):
        queue.offer(Ticket("a", 0, 100_000), 0.0)
    drain(queue)
    late = [queue.offer(Ticket("a", 0, 10), 0.0), queue.offer(Ticket("b", 0, 10), 0.0)]
    assert drain(queue) == late


def test_a_full_class_refuses_and_the_others_do_not() -> None:
    queue = AdmissionQueue(2)
    for _ in range(2):
        queue.offer(Ticket("t", 0, 10), 0.0)
    with pytest.raises(QueueFull) as caught:
        queue.offer(Ticket("t", 0, 10), 0.0)
    assert caught.value.detail["depth"] == 2
    queue.offer(Ticket("t", -1, 10), 0.0)
    assert (queue.depth(0), queue.depth(-1), len(queue)) == (2, 1, 3)


def test_a_request_that_would_wait_past_its_deadline_is_refused_at_once() -> None:
    queue = AdmissionQueue(100)
    for now_s in range(20):  # 100 tokens per second go through
        queue.offer(Ticket("t", 0, 100), float(now_s))
        queue.take(float(now_s))
    for _ in range(5):
        queue.offer(Ticket("t", 0, 100), 20.0)
    assert 3.0 < queue.wait_s(0, 20.0) < 8.0
    assert queue.wait_s(-1, 20.0) == 0.0
    queue.offer(Ticket("t", 0, 1, deadline_s=30.0), 20.0)
    queue.offer(Ticket("t", -1, 1, deadline_s=20.5), 20.0)
    with pytest.raises(QueueFull, match="longer than its deadline") as caught:
        queue.offer(Ticket("t", 0, 1, deadline_s=21.0), 20.0)
    assert caught.value.retry_after_s == pytest.approx(queue.wait_s(0, 20.0), abs=0.01)


def test_a_long_silence_is_no_reason_to_refuse_everybody() -> None:
    """Long answers hold every seat for minutes; the queue was fast before and nobody can say that it will not be again."""
    queue = AdmissionQueue(100)
    for _ in range(32):
        queue.offer(Ticket("t", 0, 100), 0.0)
    assert len(drain(queue)) == 32
    for _ in range(3):
        queue.offer(Ticket("t", 0, 100, deadline_s=900.0), 300.0)
    assert queue.depth(0) == 3


def test_deadlines_that_pass_in_the_queue_are_shed_once() -> None:
    queue = AdmissionQueue(10)
    stays, goes = queue.offer(Ticket("t", 0, 1), 0.0), queue.offer(Ticket("t", 0, 1, deadline_s=5.0), 0.0)
    assert queue.shed(5.0) == []
    ((number, error),) = queue.shed(5.1)
    assert number == goes
    assert 0 < (error.retry_after_s or 0) <= MAX_RETRY_S
    assert queue.shed(6.0) == []
    assert drain(queue) == [stays]


tickets = st.builds(Ticket, st.sampled_from("abc"), st.integers(-2, 2), st.integers(0, 5000), st.none() | st.floats(0, 30))
steps = st.tuples(
    st.sampled_from(["offer", "offer", "take", "take", "step_back", "withdraw", "shed"]),
    tickets,
    st.integers(0, 99),
    st.floats(0, 2),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(steps, max_size=150))
def test_every_ticket_leaves_exactly_once(script: list[tuple[str, Ticket, int, float]]) -> None:
    queue, inside, now_s = AdmissionQueue(20), dict[int, Ticket](), 0.0
    refusals: list[QueueFull] = []
    last: tuple[int, Ticket] | None = None
    late = set[int]()
    for action, ticket, which, elapsed_s in script:
        now_s += elapsed_s
        if action == "offer":
            try:
                inside[queue.offer(ticket, now_s)] = ticket
            except QueueFull as error:
                refusals.append(error)
        elif action == "take":
            slack = which % 2 == 0
            number = queue.take(now_s, slack=slack)
            if number is not None:
                best = min(t.klass for n, t in inside.items() if slack or n not in late or n == number)
                last = None if number in late else (number, inside[number])
                assert inside.pop(number).klass == best
                late.discard(number)
            else:
                assert not inside if slack else late.issuperset(inside)
        elif action == "step_back":
            number, stepped = last if last is not None else (-1, ticket)
            if queue.step_back(number):
                inside[number] = stepped
                late.add(number)
            else:
                assert last is None
            last = None
        elif action == "withdraw" and inside:
            number = sorted(inside)[which % len(inside)]
            del inside[number]
            queue.withdraw(number)
            queue.withdraw(number)
        elif action == "shed":
            for number, _ in queue.shed(now_s):
                deadline_s = inside.pop(number).deadline_s
                assert deadline_s is not None
                assert deadline_s < now_s
        assert len(queue) == len(inside)
        for klass in (-1, 0, 1):
            assert queue.depth(klass) == sum(t.klass == klass for t in inside.values())
    assert sorted(drain(queue, now_s)) == sorted(inside)
    assert all(0 < (error.retry_after_s or 0) <= MAX_RETRY_S for error in refusals)


class TestLateness:
    def test_one_that_steps_back_waits_for_slack_and_may_do_so_once(self) -> None:
        queue = AdmissionQueue(10)
        late, fresh = (queue.offer(Ticket("t", 0, 100), 0.0) for _ in range(2))
        assert queue.take(0.0) == late
        assert queue.step_back(late)
        assert not queue.step_back(late), "it waits already"
        assert queue.take(0.0, slack=False) == fresh
        assert queue.take(0.0, slack=False) is None
        assert queue.take(0.0, slack=True) == late
        assert not queue.step_back(late), "once"
        assert len(queue) == 0

    def test_only_the_one_in_the_door_may_step_back(self) -> None:
        queue = AdmissionQueue(10)
        first, second = (queue.offer(Ticket("t", 0, 100), 0.0) for _ in range(2))
        assert (queue.take(0.0), queue.take(0.0)) == (first, second)
        assert not queue.step_back(first)
        assert queue.step_back(second)

    def test_the_late_have_their_small_share_however_many_come_in_time(self) -> None:
        queue = AdmissionQueue(1000)
        late = queue.offer(Ticket("t", 0, 100), 0.0)
        queue.take(0.0)
        assert queue.step_back(late)
        served = 0
        while True:
            queue.offer(Ticket("t", 0, 100), 0.0)
            if queue.take(0.0, slack=False) == late:
                break
            served += 100
        assert served == pytest.approx(100 / LATE_SHARE, rel=0.01)

    def test_the_late_take_no_places_from_others_and_are_bounded_themselves(self) -> None:
        queue = AdmissionQueue(2)
        for _ in range(2):
            queue.offer(Ticket("t", 0, 100), 0.0)
            assert queue.step_back(queue.take(0.0, slack=False) or 0)
        queue.offer(Ticket("t", 0, 100), 0.0)
        with pytest.raises(QueueFull, match="late already") as refused:
            queue.step_back(queue.take(0.0, slack=False) or 0)
        assert refused.value.retry_after_s == MAX_RETRY_S
        assert queue.depth(0) == 2
        assert queue.wait_s(0, 0.0) == 0, "nobody waits behind the late"


def test_leavers_do_not_pile_up_in_memory() -> None:
    queue = AdmissionQueue(10)
    keep = queue.offer(Ticket("t", 0, 1), 0.0)
    for _ in range(5000):
        queue.withdraw(queue.offer(Ticket("t", 0, 1), 0.0))
    assert max(len(lane.heap) for lane in queue._lanes.values()) < 200
    assert drain(queue) == [keep]


class TestBudgets:
    def test_a_budget_allows_bursts_and_holds_on_average(self) -> None:
        budgets, served = Budgets({"t": Budget(tokens_per_s=100, burst_s=2)}, Budget()), 0
        told: list[float | None] = []
        for tick in range(1000):
            try:
                budgets.charge_tokens("t", 30, tick * 0.1)
                served += 30
            except RateLimited as error:
                told.append(error.retry_after_s)
        assert all(0 < (wait_s or 0) <= 0.4 for wait_s in told)
        assert served == pytest.approx(100 * 100, rel=0.05)

    def test_waiting_as_told_is_enough(self) -> None:
        budgets = Budgets({}, Budget(tokens_per_s=10, burst_s=1))
        budgets.charge_tokens("t", 500, 0.0)
        with pytest.raises(RateLimited) as caught:
            budgets.charge_tokens("t", 1, 1.0)
        budgets.charge_tokens("t", 1, 1.0 + (caught.value.retry_after_s or 0))

    def test_a_refund_restores_the_balance(self) -> None:
        budgets = Budgets({}, Budget(tokens_per_s=10, burst_s=1))
        budgets.charge_tokens("t", 500, 0.0)
        budgets.refund_tokens("t", 500)
        budgets.charge_tokens("t", 5, 0.0)

    def test_tenants_that_were_seen_once_take_no_room_for_ever(self) -> None:
        budgets = Budgets({}, Budget(tokens_per_s=10, burst_s=1))
        for number in range(5 * SWEEP_TENANTS):
            budgets.charge_tokens(f"t{number}", 1, now_s=number * 0.01)
        assert budgets.num_balances <= SWEEP_TENANTS

    def test_a_budget_that_is_used_up_survives_the_others(self) -> None:
        budgets = Budgets({}, Budget(tokens_per_s=10, burst_s=1))
        budgets.charge_tokens("greedy", 1_000_000, now_s=0.0)
        for number in range(2 * SWEEP_TENANTS):
            budgets.charge_tokens(f"t{number}", 1, now_s=number * 0.01)
        with pytest.raises(RateLimited):
            budgets.charge_tokens("greedy", 1, now_s=1000.0)

    def test_no_budget_is_no_limit(self) -> None:
        budgets = Budgets({}, Budget())
        budgets.charge_tokens("t", 10**12, 0.0)
        budgets.charge_egress("t", 10**15, 0.0)
        budgets.charge_tokens("t", 10**12, 0.0)
        assert budgets.may_send("t", 0.0)

    def test_egress_is_booked_afterwards_and_stops_sending_until_it_is_earned(self) -> None:
        budgets = Budgets({"t": Budget(egress_bytes_per_s=1000, burst_s=1)}, Budget())
        assert budgets.may_send("t", 0.0)
        budgets.charge_egress("t", 5_000, 0.0)
        assert not budgets.may_send("t", 3.0)
        assert budgets.may_send("t", 4.1)
        assert budgets.may_send("other", 0.0)
