"""Changes of role: when they come, whom they take, and that they never flap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.types import Role
from router.policy.conversion import AGREEING_PLANS, REVERSAL_INTERVALS, ConversionRule, direction
from router.policy.view import WorkerView
from tests.support.router_fleet import FAR, PD, fleet_view, worker_view

INTERVAL_S = 100.0
PREFILL, DECODE = Role.PD_PREFILL, Role.DECODE
D1, D2 = worker_view("d1", running=3), worker_view("d2", running=1)
P1, P2 = worker_view("p1", PREFILL, queued_s=2.0), worker_view("p2", PREFILL, queued_s=1.0)
EVERYBODY = fleet_view(D1, D2, P1, P2, worker_view("far", Role.PREFILL, FAR))


def told_twice(wanted: Role, *workers: WorkerView, now_s: float = 0.0) -> str | None:
    rule, view = ConversionRule(INTERVAL_S), fleet_view(*workers)
    rule.step(PD, wanted, view, now_s)
    change = rule.step(PD, wanted, view, now_s)
    return None if change is None else str(change.worker_id)


@pytest.mark.parametrize(("present", "planned", "role"), [(3, 3, None), (3, 5, PREFILL), (3, 1, DECODE)])
def test_the_direction_is_that_of_the_plan(present: int, planned: int, role: Role | None) -> None:
    assert direction(present, planned) is role


def test_the_least_busy_worker_of_the_other_role_changes() -> None:
    assert told_twice(PREFILL, D1, D2, P1) == "d2"
    assert told_twice(DECODE, D1, P1, P2) == "p2"


def test_the_last_worker_of_its_role_stays() -> None:
    assert told_twice(PREFILL, D1, P1, P2) is None
    assert told_twice(DECODE, D1, D2, P1) is None


@pytest.mark.parametrize("state", [{"draining": True}, {"suspect": True}, {"seen_s": -10.0}])
def test_workers_that_are_not_well_neither_change_nor_count(state: dict[str, float | bool]) -> None:
    unwell = worker_view("d3", **state)
    assert told_twice(PREFILL, D1, D2, unwell) == "d2"
    assert told_twice(PREFILL, D1, unwell) is None


def test_nodes_of_another_site_are_not_touched() -> None:
    assert told_twice(PREFILL, D1, worker_view("e1", site="pd-2"), worker_view("e2", site="pd-2")) is None
    assert told_twice(DECODE, D1, P1, worker_view("f1", Role.PREFILL), worker_view("f2", Role.PREFILL)) is None


def test_one_plan_alone_changes_nothing() -> None:
    rule = ConversionRule(INTERVAL_S)
    for wanted in (PREFILL, None, PREFILL, DECODE, PREFILL):
        assert rule.step(PD, wanted, EVERYBODY, 0.0) is None


def test_an_undoing_waits_longer_than_a_continuation() -> None:
    def changes(second: Role, at_s: float) -> bool:
        rule = ConversionRule(INTERVAL_S)
        rule.step(PD, PREFILL, EVERYBODY, 0.0)
        assert rule.step(PD, PREFILL, EVERYBODY, 0.0) is not None
        view = fleet_view(
            *(worker_view(n, r, seen_s=at_s) for n, r in (("a", DECODE), ("b", DECODE), ("c", PREFILL), ("d", PREFILL)))
        )
        rule.step(PD, second, view, at_s)
        return rule.step(PD, second, view, at_s) is not None

    assert not changes(PREFILL, INTERVAL_S - 1)
    assert changes(PREFILL, INTERVAL_S)
    assert not changes(DECODE, REVERSAL_INTERVALS * INTERVAL_S - 1)
    assert changes(DECODE, REVERSAL_INTERVALS * INTERVAL_S)


@given(plans=st.lists(st.tuples(st.sampled_from([None, PREFILL, DECODE]), st.floats(0, 500)), max_size=80))
def test_whatever_the_plans_say_changes_are_rare_and_do_not_flap(plans: list[tuple[Role | None, float]]) -> None:
    rule, now_s = ConversionRule(INTERVAL_S), 0.0
    done: list[tuple[float, Role]] = []
    asked: list[Role | None] = []
    for wanted, wait_s in plans:
        now_s += wait_s
        asked.append(wanted)
        view = fleet_view(*(worker_view(f"{r}{i}", r, seen_s=now_s) for r in (PREFILL, DECODE) for i in range(3)))
        change = rule.step(PD, wanted, view, now_s)
        if change is not None:
            assert set(asked[-AGREEING_PLANS:]) == {change.role}
            done.append((now_s, change.role))
    for (before_s, before), (after_s, after) in pairwise(done):
        assert after_s - before_s >= INTERVAL_S * (1 if after is before else REVERSAL_INTERVALS)
