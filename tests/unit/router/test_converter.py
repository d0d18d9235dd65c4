"""Carrying a change of role out: what the fleet shows meanwhile, and what a failure leaves behind."""

from __future__ import annotations

import asyncio

from prfaas import metrics as m
from prfaas.clock import ManualClock
from prfaas.config import RouterSettings
from prfaas.errors import WorkerUnreachable
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import Role, WorkerLoad
from router.converter import Converter
from router.fleet import Fleet
from router.main import make_replanner
from router.policy.conversion import Change, ConversionRule
from router.policy.short_loop import ShortLoop
from router.policy.view import Tuning
from tests.support.router_fleet import PD, worker_info


class SlowControl:
    """A worker that takes its time, and fails if it is told to."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.asked: list[tuple[Change, float]] = []
        self.go = asyncio.Event()

    async def set_role(self, change: Change, drain_s: float) -> int:
        self.asked.append((change, drain_s))
        await self.go.wait()
        if self.fails:
            raise WorkerUnreachable("gone", worker_id=change.worker_id)
        return 0


def fleet_of_four(metrics: MetricSet) -> Fleet:
    fleet = Fleet(clock=ManualClock(), metrics=metrics, member_timeout_s=3.0, tuning=Tuning(1000))
    for name, role in (("d1", Role.DECODE), ("d2", Role.DECODE), ("p1", Role.PD_PREFILL), ("p2", Role.PD_PREFILL)):
        fleet.register(worker_info(name, role))
        fleet.heartbeat(worker_info(name, role).worker_id, "1", WorkerLoad(free_blocks=10), (), ())
    return fleet


def build(control: SlowControl) -> tuple[Fleet, Converter, MetricSet]:
    metrics = MetricSet(Emitter.ROUTER)
    fleet = fleet_of_four(metrics)
    converter = Converter(fleet, control, ConversionRule(100.0), 7.0, metrics, ManualClock())
    return fleet, converter, metrics


def count(metrics: MetricSet, outcome: str) -> float:
    return metrics.registry.get_sample_value(m.CONVERSIONS.name, {"role": "pd_prefill", "outcome": outcome}) or 0.0


async def test_a_worker_gets_nothing_new_from_the_order_until_it_has_registered_in_its_new_role() -> None:
    control = SlowControl()
    fleet, converter, metrics = build(control)
    assert await converter.consider(PD, Role.PD_PREFILL) is None
    order = asyncio.create_task(converter.consider(PD, Role.PD_PREFILL))
    await asyncio.sleep(0)
    assert [(change.worker_id, drain_s) for change, drain_s in control.asked] == [("d1", 7.0)]
    assert [(w.worker_id, w.draining) for w in fleet.view().decode] == [("d1", True), ("d2", False)]
    assert {v.info.worker_id: (v.converting, v.healthy) for v in fleet.status().members}["d1"] == (Role.PD_PREFILL, False)
    control.go.set()
    assert await order == control.asked[0][0]
    assert count(metrics, "done") == 1
    assert [w.draining for w in fleet.view().decode] == [True, False]
    fleet.register(worker_info("d1", Role.PD_PREFILL))
    assert [w.worker_id for w in fleet.view().decode] == ["d2"]
    assert {w.worker_id: w.draining for w in fleet.view().prefill[PD]} == {"p1": False, "p2": False, "d1": False}


async def test_a_failure_is_counted_and_leaves_the_worker_where_it_was() -> None:
    control = SlowControl(fails=True)
    control.go.set()
    fleet, converter, metrics = build(control)
    await converter.consider(PD, Role.PD_PREFILL)
    assert await converter.consider(PD, Role.PD_PREFILL) is None
    assert count(metrics, "failed") == 1
    assert not any(w.draining for w in fleet.view().decode)


def test_the_setting_switches_conversion_off() -> None:
    metrics = MetricSet(Emitter.ROUTER)
    fleet, loop = fleet_of_four(metrics), ShortLoop(1000, slo_s=5.0)

    def converts(on: bool) -> bool:
        settings = RouterSettings.model_validate({"model": "x", "served_model_name": "m", "policy": {"convert_nodes": on}})
        return make_replanner(settings, fleet, loop, metrics, ManualClock()).converts

    assert (converts(True), converts(False)) == (True, False)
