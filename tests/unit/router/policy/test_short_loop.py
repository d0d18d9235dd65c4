"""The floor of the threshold: zero while the links carry what arrives, solved for when they do not, and steady."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport.session.rate import RateMeter
from prfaas.types import LinkView
from router.policy.link_health import LinkState, Outcomes
from router.policy.short_loop import WINDOW_S, Arrival, Observation, ShortLoop
from router.policy.view import Link, Tuning
from tests.support.router_fleet import FAR, PD

LINK = Link(FAR, PD)
TICK_S = 0.5
GBIT = 125e6
PLANNED = 20_000
SLO_S = 10.0


def link(queued: float = 0, *, goodput: float = 0.0, active: int = 4, age_s: float = 0.0) -> LinkView:
    return LinkView(FAR, PD, 100 * GBIT, goodput, int(queued), 0.02, 0.0, active_transfers=active, age_s=age_s)


LOOK_S = TICK_S / 4
EMITTED = 3.5 * GBIT  # what one instance computes for the link


class Plant:
    """Requests, and a link that carries what the loop's threshold lets through; instances to compute are never short."""

    def __init__(self, rate_rps: float, *, seed: int = 0, scale: float = 1.0) -> None:
        self.loop, self.tuning = ShortLoop(PLANNED, SLO_S), Tuning(PLANNED)
        self.rate_rps, self.scale, self._random = rate_rps, scale, random.Random(seed)
        self.now_s = self.queued = 0.0
        self._next_s = self._random.expovariate(rate_rps)
        self._computing: list[float] = []  # bytes to come of each prompt
        self._meter = RateMeter()
        self.thresholds: list[int] = []
        self.states: list[LinkState] = []

    def run(self, seconds: float, gbps: float) -> None:
        for _ in range(round(seconds / TICK_S)):
            arrivals = list(self._arrive())
            if LINK not in self.tuning.folded:
                self._computing += [a.kv_bytes for a in arrivals if a.uncached_tokens > self.tuning.threshold_tokens]
            moved = sum(self._look(gbps * GBIT * self.scale * LOOK_S) for _ in range(4))
            view = LinkView(
                FAR, PD, 100 * GBIT * self.scale, self._meter.bytes_per_s, int(self.queued), 0.02,
                active_transfers=len(self._computing) + (self.queued > 0), age_s=self.now_s - (self._meter.last_s or 0.0),
            )  # fmt: skip
            outcomes = {LINK: Outcomes(landed=int(moved > 0), sent_bytes=int(moved))}
            alive = frozenset() if gbps == 0 else frozenset({FAR})
            self.tuning = self.loop.step(Observation({LINK: view}, outcomes, arrivals, alive), self.now_s)
            self.thresholds.append(self.tuning.threshold_tokens)
            self.states.append(self.loop.states()[LINK])

    def _look(self, most: float) -> float:
        self.now_s += LOOK_S
        for index, left in enumerate(self._computing):
            ready = min(left, EMITTED * LOOK_S)
            self.queued += ready
            self._computing[index] = left - ready
        self._computing = [left for left in self._computing if left > 0]
        moved = min(self.queued, most)
        self.queued -= moved
        if moved:
            self._meter.add(int(moved), self.now_s)
        return moved

    def _arrive(self):  # type: ignore[no-untyped-def]
        while self._next_s <= self.now_s + TICK_S:
            tokens = min(131_072, max(128, int(self._random.lognormvariate(9.9, 1.0))))
            yield Arrival(self._next_s, tokens, 181_000_000 + 17_200 * tokens)
            self._next_s += self._random.expovariate(self.rate_rps)

    def last(self, seconds: float) -> list[int]:
        return self.thresholds[-round(seconds / TICK_S) :]

    def changes(self, seconds: float) -> int:
        return sum(a is not b for a, b in pairwise(self.states[-round(seconds / TICK_S) :]))


SIZES = pytest.mark.parametrize("times", [1, 100], ids=["small", "large"])


@SIZES
@pytest.mark.parametrize("seed", range(5))
def test_where_the_link_has_room_the_plan_stays_in_force_to_the_token(times: int, seed: int) -> None:
    plant = Plant(2.5 * times, seed=seed, scale=times)
    plant.run(300, 100)
    assert set(plant.thresholds) == {PLANNED}
    assert plant.changes(300) == 0


@SIZES
@pytest.mark.parametrize("seed", range(5))
def test_a_brown_out_settles_within_ten_seconds_and_the_link_is_not_overfilled(times: int, seed: int) -> None:
    plant = Plant(2.5 * times, seed=seed, scale=times)
    plant.run(100, 100)
    plant.run(10, 5)
    plant.run(120, 5)
    settled = sorted(plant.last(120))
    median = settled[len(settled) // 2]
    assert median > 1.2 * PLANNED, "5 Gbit/s does not carry what the plan sends"
    within = [t for t in settled if 0.5 * median <= t <= 2 * median]
    assert len(within) > 0.95 * len(settled)
    assert plant.changes(120) <= 4
    assert plant.queued < 5 * GBIT * times * SLO_S


@SIZES
@pytest.mark.parametrize("seed", range(5))
def test_down_to_five_to_nothing_and_back_settles_within_ten_seconds_of_each(times: int, seed: int) -> None:
    plant = Plant(2.5 * times, seed=seed, scale=times)
    plant.run(60, 100)
    plant.run(60, 5)
    plant.run(10, 0)
    plant.run(50, 0)
    assert plant.changes(50) == 0
    assert plant.states[-1] is LinkState.FOLDED
    plant.run(10, 100)
    assert plant.states[-1] is not LinkState.FOLDED
    assert plant.thresholds[-1] <= 1.25 * PLANNED
    plant.run(120, 100)
    assert set(plant.last(115)) == {PLANNED}
    assert plant.states[-1] is LinkState.OPEN
    assert plant.changes(110) == 0


def test_the_floor_lets_through_what_the_link_carries() -> None:
    plant = Plant(200.0, seed=1, scale=40)
    plant.run(60, 100)
    plant.run(120, 5)
    offered = sum(200 * (181e6 + 17_200 * t) for t in _lengths() if t > plant.tuning.threshold_tokens) / 4000
    assert 0.6 * 200 * GBIT < offered < 200 * GBIT


def _lengths() -> list[int]:
    draw = random.Random(9)
    return [min(131_072, max(128, int(draw.lognormvariate(9.9, 1.0)))) for _ in range(4000)]


def test_a_new_plan_is_in_force_at_once() -> None:
    loop = ShortLoop(PLANNED, SLO_S)
    assert loop.step(Observation({LINK: link()}), 0.5).threshold_tokens == PLANNED
    loop.plan(PLANNED // 2)
    assert loop.planned_tokens == PLANNED // 2
    assert loop.step(Observation({LINK: link()}), 1.0) == Tuning(PLANNED // 2)


def test_a_link_nobody_knows_the_capacity_of_sets_no_floor() -> None:
    loop = ShortLoop(PLANNED, SLO_S)
    unknown = LinkView(FAR, PD, goodput_bytes_per_s=1.0)
    many = [Arrival(0.0, 100_000, 10**12)] * 50
    assert loop.step(Observation({LINK: unknown}, {}, many), 0.5).floor_tokens == 0


def test_what_was_asked_for_a_minute_ago_no_longer_counts() -> None:
    loop, now_s = ShortLoop(PLANNED, SLO_S), 0.0
    loop.step(Observation({LINK: link()}, {}, [Arrival(0.0, 50_000, 10**13)]), now_s)
    peak = 0
    while now_s < WINDOW_S + 60:
        now_s += TICK_S
        tuning = loop.step(Observation({LINK: link()}), now_s)
        peak = max(peak, tuning.floor_tokens)
    assert peak > PLANNED
    assert tuning == Tuning(PLANNED)


views = st.builds(link, st.floats(0, 1e12), goodput=st.floats(0, 2e10), active=st.integers(0, 9), age_s=st.floats(0, 60))
arrived = st.lists(st.tuples(st.integers(1, 150_000), st.integers(0, 10**11)), max_size=5)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.none() | views, arrived, st.integers(0, 4), st.integers(0, 2), st.floats(0, 5))))
def test_whatever_is_seen_the_threshold_is_at_least_the_plan_and_folded_is_scarce(
    seen: list[tuple[LinkView | None, list[tuple[int, int]], int, int, float]],
) -> None:
    loop, now_s = ShortLoop(PLANNED, SLO_S), 0.0
    for view, requests, failed, landed, step_s in seen:
        now_s += step_s
        links = {} if view is None else {LINK: view}
        arrivals = [Arrival(now_s, *request) for request in requests]
        tuning = loop.step(Observation(links, {LINK: Outcomes(landed, failed, landed * 1000)}, arrivals), now_s)
        assert tuning.threshold_tokens == max(PLANNED, tuning.floor_tokens)
        assert tuning.floor_tokens <= 150_000
        assert tuning.folded <= tuning.scarce <= {LINK}
