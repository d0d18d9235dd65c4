"""The tuner shows the loop what the fleet knows and puts its answer into force."""

from __future__ import annotations

import pytest

from prfaas import metrics as m
from prfaas.clock import ManualClock
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import LinkView, Role, WorkerId, WorkerLoad
from router.fleet import Fleet
from router.policy.short_loop import Outcomes, ShortLoop
from router.policy.view import Link, Tuning
from router.tuner import TICK_S, Tuner, observe
from tests.support.router_fleet import FAR, PD, worker_info

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

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.advance(TICK_S)
            self.tuner.tick()

    def state(self, state: str) -> float | None:
        return self.metrics.registry.get_sample_value(m.LINK_STATE.name, {"src": "far", "dst": "pd", "state": state})


@pytest.fixture
def world() -> World:
    return World()


def test_backlogs_of_either_side_links_and_outcomes_are_observed_once(world: World) -> None:
    world.beat("r", 8_000)
    world.beat("p", 2_000)
    world.beat("d", 0, LinkView(FAR, PD, 1e9))
    world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=True, sent_bytes=10)
    world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=False)
    world.fleet.transfer_ended(WorkerId("p"), WorkerId("d"), landed=False)  # no link between neighbours
    seen = observe(world.fleet, 0.0)
    assert (seen.remote_backlog_s, seen.local_backlog_s) == (8.0, 2.0)
    assert seen.outcomes == {LINK: Outcomes(1, 1, 10)}
    assert set(seen.links) == {LINK}
    assert observe(world.fleet, 0.0).outcomes == {}
    assert observe(world.fleet, 99.0).remote_backlog_s is None


def test_a_failing_link_is_folded_in_the_fleet_and_in_the_metrics(world: World) -> None:
    for _ in range(3):
        world.fleet.transfer_ended(WorkerId("r"), WorkerId("d"), landed=False)
    world.tick()
    assert world.fleet.view().tuning.folded == {LINK}
    assert (world.state("folded"), world.state("open")) == (1.0, 0.0)
    world.tick(5)
    assert world.fleet.view().tuning.folded == frozenset()
    assert (world.state("folded"), world.state("scarce")) == (0.0, 1.0)


def test_queues_move_the_threshold_in_force(world: World) -> None:
    world.tick()
    world.beat("r", 60_000)
    world.beat("p", 0)
    world.tick(2)
    threshold = world.fleet.view().tuning.threshold_tokens
    assert threshold > 2048
    assert world.metrics.registry.get_sample_value(m.THRESHOLD_TOKENS.name) == threshold
