"""The long loop's adapter: from a fleet's measurements to a planned threshold."""

from __future__ import annotations

import random

from prfaas import metrics as m
from prfaas.clock import ManualClock
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import Decision, PrefillReport, Role, Route, WorkerId, WorkerInfo, WorkerLoad
from router.fleet import Fleet
from router.policy.costs import Kind
from router.policy.decide import Rule, Verdict
from router.policy.short_loop import ShortLoop
from router.policy.view import Tuning
from router.replanner import Replanner, measure
from tests.support.router_fleet import PD, request_view, worker_info


def build(decode_step_s: float = 0.025) -> tuple[Fleet, Replanner, ShortLoop, MetricSet]:
    metrics = MetricSet(Emitter.ROUTER)
    fleet = Fleet(clock=ManualClock(), metrics=metrics, member_timeout_s=3.0, tuning=Tuning(40_000))
    loop = ShortLoop(40_000, slo_s=5.0)
    workers: list[WorkerInfo] = [worker_info(f"d{i}", max_running=20) for i in range(5)]
    workers += [worker_info(f"p{i}", Role.PD_PREFILL) for i in range(3)]
    workers += [worker_info(f"r{i}", Role.PREFILL, "far") for i in range(4)]
    for info in workers:
        fleet.register(info)
        fleet.heartbeat(info.worker_id, "1", WorkerLoad(decode_step_s=decode_step_s), (), ())
    return fleet, Replanner(fleet=fleet, loop=loop, metrics=metrics, period_s=60.0), loop, metrics


def teach(fleet: Fleet, worker: str, per_token_s: float) -> None:
    decision = Decision(WorkerId("d0"), "x", Route.INLINE, (), (), 0, 0)
    for tokens in (1_000, 5_000, 20_000, 60_000):
        dispatch_id = fleet.dispatched(Verdict(decision, Rule.SHORT), request_view(tokens))
        report = PrefillReport(Route.LOCAL, WorkerId(worker), 0, 0.0, 0.2 + tokens * per_token_s, 0.0, 0.0, 0)
        fleet.prefilled(dispatch_id, report, tokens)
        fleet.ended(dispatch_id)


async def test_nothing_is_planned_before_everything_is_measured() -> None:
    fleet, replanner, loop, _ = build(decode_step_s=0.0)
    assert measure(fleet) is None
    teach(fleet, "p0", 1.5e-4)
    assert measure(fleet) is None
    assert await replanner.round() is None
    assert loop.planned_tokens == 40_000


async def test_a_round_moves_the_planned_threshold_and_recommends_a_split() -> None:
    fleet, replanner, loop, metrics = build()
    teach(fleet, "p0", 1.5e-4)
    teach(fleet, "r0", 0.55e-4)
    inputs = measure(fleet)
    assert inputs is not None
    assert (inputs[1].num_prefill, inputs[1].num_decode, inputs[1].batch) == (3, 5, 20)
    assert [(s.name, s.workers) for s in inputs[0]] == [("far", 4)]
    assert inputs[1].prefill == fleet.view().models[Kind(PD, Role.PD_PREFILL)]
    rng = random.Random(2)
    for _ in range(1000):
        fleet.finished(min(131_072, round(rng.lognormvariate(9.9, 1.0))), 1024)
    plan = await replanner.round()
    assert plan is not None
    assert plan.change_threshold
    assert loop.planned_tokens == plan.threshold_tokens < 40_000
    recommended = metrics.registry.get_sample_value(m.PLANNED_PREFILL.name)
    assert recommended == plan.best.num_prefill
    again = await replanner.round()
    assert again is not None
    assert not again.change_threshold
