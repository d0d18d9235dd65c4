"""The tuner shows the loop what the fleet knows and puts its answer into force."""

from __future__ import annotations

import pytest

from prfaas import metrics as m
from prfaas.clock import ManualClock
from prfaas.config import PolicySettings
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import LinkView, Role, WorkerId, WorkerLoad
from router.fleet import Fleet
from router.policy.decide import Verdict
from router.policy.link_health import Outcomes
from router.policy.short_loop import Arrival, ShortLoop
from router.policy.threshold import ThresholdPolicy
from router.policy.view import Link, Tuning
from router.tuner import TICK_S, Tuner, observe
from tests.support.router_fleet import FAR, PD, request_view, worker_info

LINK = Link(FAR, PD)


class World:
    def __init__(self) -> None:
        self.clock, self.metrics = ManualClock(), MetricSet(Emitter.ROUTER)
        self.fleet = Fleet(clock=self.clock, metrics=self.metrics, member_timeout_s=3.0, tuning=Tuning(2048))
        loop = ShortLoop(2048, slo_s=5.0)
        self.tuner = Tuner(fleet=self.fleet, loop=loop, metrics=self.metrics, clock=self.clock)
        for info in (worker_info("d"), worker_info("p", Role.PD_PREFILL), worker_info("r", Role.PREFILL, "far")):
            self.fleet.register(info)

    def beat(self, worker_id: str, waiting_tokens: int = 0, *links: LinkView) -> None:
        load = WorkerLoad(waiting_prefill_tokens=waiting_tokens, prefill_tokens_per_s=1000.0)
        self.fleet.heartbeat(WorkerId(worker_id), "1", load, (), links)

    def decide(self, num_tokens: int) -> Verdict:
        request = request_view(num_tokens)
        verdict = ThresholdPolicy(PolicySettings()).decide(request, self.fleet.view(), self.clock.now_s())
        self.fleet.dispatched(verdict, request)
        return verdict

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(TICK_S)
            self.tuner.tick()

    def state(self, state: str) -> float | None:
        return self.metrics.registry.get_sample_value(m.LINK_STATE.name, {"src": "far", "dst": "pd", "state": state})


@pytest.fixture
def world() -> World:
    return World()


def test_links_outcomes_and_arrivals_are_observed_once_and_silence_is_noticed(world: World) -> None:
    world.beat("d", 0, LinkView(FAR, PD, 1e9))
    world.beat("r")
    world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=True, sent_bytes=10)
    world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=False)
    world.fleet.transfer_ended(WorkerId("p"), WorkerId("d"), landed=False)  # no link between neighbours
    verdict = world.decide(5000)
    seen = observe(world.fleet, 0.0)
    assert seen.outcomes == {LINK: Outcomes(1, 1, 10)}
    assert set(seen.links) == {LINK}
    assert seen.arrivals == (Arrival(0.0, 5000, verdict.kv_bytes),)
    assert verdict.kv_bytes > 0
    assert FAR in seen.alive
    again = observe(world.fleet, 99.0)
    assert (again.outcomes, again.arrivals) == ({}, ())
    assert again.alive == frozenset()


def test_a_failing_link_is_folded_in_the_fleet_and_in_the_metrics(world: World) -> None:
    for _ in range(3):
        world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=False)
    world.tick()
    assert world.fleet.view().tuning.folded == {LINK}
    assert (world.state("folded"), world.state("open")) == (1.0, 0.0)
    world.tick(5)
    assert world.fleet.view().tuning.folded == frozenset(), "it may be tried"
    assert world.state("folded") == 1.0, "but nothing has come through yet"
    world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=True, sent_bytes=10)
    world.tick()
    assert (world.state("folded"), world.state("scarce")) == (0.0, 1.0)


def test_a_link_that_is_short_raises_the_threshold_in_force(world: World) -> None:
    world.tick()
    assert world.fleet.view().tuning.threshold_tokens == 2048
    for _ in range(40):
        world.decide(10_000)
    world.beat("d", 0, LinkView(FAR, PD, 1e5))
    world.tick(10)
    tuning = world.fleet.view().tuning
    assert tuning.threshold_tokens == tuning.floor_tokens > 2048
    assert world.metrics.registry.get_sample_value(m.THRESHOLD_TOKENS.name) == tuning.threshold_tokens
