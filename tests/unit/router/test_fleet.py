"""Members, load, links and status, on a clock that moves when told to."""

from __future__ import annotations

import pytest

from prfaas import metrics as m
from prfaas.clock import ManualClock
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import Decision, LinkView, PrefillCandidate, PrefillReport, Role, Route, WorkerId, WorkerLoad
from router.fleet import LINK_EXPIRY_S, Fleet
from router.policy.decide import Rule, Verdict
from router.policy.prefix_index import name_prompt
from router.policy.view import Link, Tuning
from tests.support.router_fleet import FAR, MODEL, PD, generation_request, request_view, worker_info

D1 = worker_info("d1")
P1 = worker_info("p1", Role.PD_PREFILL)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = MetricSet(Emitter.ROUTER)
        self.fleet = Fleet(clock=self.clock, metrics=self.metrics, member_timeout_s=3.0, tuning=Tuning(2048))

    def beat(self, worker_id: str, load: WorkerLoad | None = None, *links: LinkView) -> None:
        answer = self.fleet.heartbeat(WorkerId(worker_id), "1", load or WorkerLoad(), (), links)
        assert answer.known

    def workers(self, role: Role, state: str, site: str = "pd") -> float | None:
        return self.metrics.registry.get_sample_value(m.WORKERS.name, {"site": site, "role": role.value, "state": state})


@pytest.fixture
def world() -> World:
    return World()


def verdict(prefiller: str | None = "p1") -> Verdict:
    ladder = (PrefillCandidate(WorkerId(prefiller), PD, "x", Route.LOCAL),) if prefiller else ()
    route = Route.LOCAL if prefiller else Route.INLINE
    return Verdict(Decision(WorkerId("d1"), "x", route, ladder, (), 0, 0), Rule.SHORT)


def report(worker_id: str = "p1", cached_tokens: int = 0, prefill_s: float = 0.1) -> PrefillReport:
    return PrefillReport(Route.LOCAL, WorkerId(worker_id), cached_tokens, 0.0, prefill_s, 0.0, 0.0, 0)


def test_a_view_is_kept_until_something_changes(world: World) -> None:
    world.fleet.register(D1)
    view = world.fleet.view()
    assert world.fleet.view() is view
    world.beat("d1", WorkerLoad(running=2, waiting=1, free_blocks=10, cached_blocks=5))
    (worker,) = world.fleet.view().decode
    assert (worker.running, worker.waiting, worker.free_tokens) == (3, 1, 15 * 16)
    assert view.decode[0].running == 0


def test_a_dispatch_counts_where_reports_are_older_and_no_more_when_it_is_over(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(P1)
    world.beat("d1", WorkerLoad(running=1, free_blocks=100))
    request = request_view(160, d1=32, p1=64)
    ids = [world.fleet.dispatched(verdict(), request) for _ in range(3)]
    (decode,), (prefill,) = world.fleet.view().decode, world.fleet.view().prefill[PD]
    assert (decode.running, decode.free_tokens, prefill.queued_tokens) == (3, (100 - 3 * 8) * 16, 3 * 96)
    world.beat("d1", WorkerLoad(running=9, free_blocks=100))
    assert world.fleet.view().decode[0].running == 9
    world.fleet.prefilled(ids[0], report(), 160)
    assert world.fleet.view().prefill[PD][0].queued_tokens == 2 * 96
    for dispatch_id in ids:
        world.fleet.ended(dispatch_id)
    assert world.fleet.view().prefill[PD][0].queued_tokens == 0
    assert world.fleet.view().decode[0].free_tokens == 1600
    assert world.fleet.num_dispatched == 0


def test_an_inline_prefill_queues_on_the_decode_worker(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.dispatched(verdict(None), request_view(160, d1=32))
    assert world.fleet.view().decode[0].queued_tokens == 128


def test_a_request_may_outlive_its_workers(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(P1)
    dispatch_id = world.fleet.dispatched(verdict(), request_view(100))
    world.fleet.deregister(D1.worker_id, "1")
    world.fleet.deregister(P1.worker_id, "1")
    world.fleet.prefilled(dispatch_id, report(), 100)
    world.fleet.ended(dispatch_id)
    assert world.fleet.num_dispatched == 0


def test_silence_makes_unhealthy_and_long_silence_forgotten(world: World) -> None:
    world.fleet.register(D1)
    assert world.fleet.status().ready
    assert world.fleet.max_context_tokens(MODEL) == D1.max_context_tokens
    world.clock.advance(3.5)
    status = world.fleet.status()
    assert not status.ready
    assert status.members[0].age_s == 3.5
    assert world.fleet.max_context_tokens(MODEL) is None
    world.fleet.expire(after_s=3.0)
    assert world.fleet.status().members == ()
    assert not world.fleet.heartbeat(D1.worker_id, "1", WorkerLoad(), (), ()).known


def test_a_heartbeat_clears_suspicion(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.suspect(D1.worker_id)
    assert world.fleet.view().decode[0].suspect
    assert not world.fleet.status().ready
    world.beat("d1")
    assert world.fleet.status().ready


def test_a_heartbeat_of_an_earlier_start_is_not_believed(world: World) -> None:
    world.fleet.register(worker_info("d1", incarnation="2"))
    assert not world.fleet.heartbeat(D1.worker_id, "1", WorkerLoad(draining=True), (), ()).known
    assert not world.fleet.put_snapshot(D1.worker_id, "1", 0, ())
    world.fleet.deregister(D1.worker_id, "1")
    assert world.fleet.status().ready


def test_a_converted_worker_changes_sides(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(P1)
    world.fleet.register(worker_info("p1", Role.DECODE))
    assert [w.worker_id for w in world.fleet.view().decode] == ["d1", "p1"]
    assert world.fleet.view().prefill == {}
    assert not world.fleet.status().reduced


def test_reduced_means_that_a_kind_of_worker_is_lost_not_that_it_left(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(worker_info("r1", Role.PREFILL, "far"))
    world.fleet.register(P1)
    world.fleet.deregister(P1.worker_id, "1")
    assert not world.fleet.status().reduced
    world.clock.advance(3.5)
    world.beat("d1")
    status = world.fleet.status()
    assert status.ready
    assert status.reduced


def test_a_folded_link_is_reduced_capacity(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.tune(Tuning(100, folded=frozenset({Link(FAR, PD)})))
    assert world.fleet.status().reduced
    assert world.fleet.status().threshold_tokens == 100
    assert world.metrics.registry.get_sample_value(m.THRESHOLD_TOKENS.name) == 100


def test_receivers_reports_of_one_path_become_one_view(world: World) -> None:
    for name in ("d1", "d2"):
        world.fleet.register(worker_info(name))
    world.beat("d1", None, LinkView(FAR, PD, 1e9, 2e8, 100, rtt_s=0.04, loss_ratio=0.01, active_transfers=3))
    world.beat("d2", None, LinkView(FAR, PD, 0.0, 1e8, 50, rtt_s=0.06, loss_ratio=0.05, active_transfers=1))
    link = world.fleet.view().links[Link(FAR, PD)]
    assert (link.capacity_bytes_per_s, link.goodput_bytes_per_s, link.queued_bytes) == (1e9, 3e8, 150)
    assert (link.rtt_s, link.active_transfers) == (0.04, 4)
    assert link.loss_ratio == pytest.approx(0.02)
    world.clock.advance(LINK_EXPIRY_S + 1)
    world.beat("d2", None, LinkView(FAR, PD, 0.0, 7e7))
    assert world.fleet.view().links[Link(FAR, PD)].goodput_bytes_per_s == 7e7
    world.fleet.deregister(WorkerId("d2"), "1")
    world.fleet.expire(1e9)
    assert world.fleet.view().links == {}


def test_worker_counts_follow_the_fleet(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.expire(60.0)
    assert world.workers(Role.DECODE, "healthy") == 1
    world.clock.advance(4.0)
    world.fleet.expire(60.0)
    assert (world.workers(Role.DECODE, "healthy"), world.workers(Role.DECODE, "unhealthy")) == (0, 1)
    world.clock.advance(60.0)
    world.fleet.expire(60.0)
    assert world.workers(Role.DECODE, "unhealthy") == 0


def test_one_request_view_names_every_block_size_in_the_fleet(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(worker_info("d2", block_tokens=32))
    assert world.fleet.block_sizes() == {16, 32}
    request = generation_request(100, deadline_s=4.0)
    view = world.fleet.request_view(request, name_prompt(request, world.fleet.block_sizes()))
    assert (view.num_tokens, view.max_tokens, view.time_left_s, view.cached_tokens) == (100, 4, 4.0, {})


def test_measured_prefills_become_a_model_of_their_kind_of_worker(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(P1)
    for tokens in (1_000, 2_000, 5_000, 10_000):
        dispatch_id = world.fleet.dispatched(verdict(), request_view(tokens))
        world.fleet.prefilled(dispatch_id, report(prefill_s=0.01 + tokens * 1e-4), tokens)
        world.fleet.ended(dispatch_id)
    (kind,) = world.fleet.view().models
    assert kind == (PD, Role.PD_PREFILL)
    assert world.fleet.view().models[kind].seconds(4_000) == pytest.approx(0.41, rel=0.01)
    world.beat("p1", WorkerLoad(waiting_prefill_tokens=8192))
    assert world.fleet.view().prefill[PD][0].queued_s == pytest.approx(0.83, rel=0.02)


def test_a_prefix_that_only_the_receiver_held_says_nothing_of_the_senders_speed(world: World) -> None:
    world.fleet.register(D1)
    world.fleet.register(P1)
    for _ in range(6):
        dispatch_id = world.fleet.dispatched(verdict(), request_view(1_000, d1=960))
        world.fleet.prefilled(dispatch_id, report(cached_tokens=960), 1_000)
        world.fleet.ended(dispatch_id)
    assert world.fleet.view().models == {}
