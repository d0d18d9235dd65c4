"""The running engine and its host tier: prefixes come back while that is cheap, are computed once restores turn out slow,
and the metrics say which and why."""

from __future__ import annotations

from dataclasses import replace

from prfaas.config import EngineSettings
from prfaas.engine.backend import LayerHook
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.loop import LoopedEngine
from prfaas.metrics import Emitter, MetricSet
from prfaas.sched.plan import StepPlan, StepResult
from prfaas.sched.restore import CopyCost
from tests.support.engine_streams import answers, ask, assert_nothing_held, drain, prompt, truth
from tests.support.tiny_specs import INSTANT, pool_sizes, tiny_spec


class TickingClock:
    """Every look at it is ten milliseconds after the last."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def now_s(self) -> float:
        self._now_s += 0.01
        return self._now_s


class PricedBackend(EmulatedBackend):
    """Promises that copies from host memory cost `promised`, and then takes `taken_s` for a step's."""

    promised = CopyCost(0.0, 0.0)
    taken_s = 0.0

    def copy_cost(self) -> CopyCost:
        return self.promised

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        restored = any(copy.source_tier == "host" for copy in plan.before)
        return replace(super().execute(plan, on_layer), restore_s=self.taken_s if restored else None)


async def rounds(promised: CopyCost, taken_s: float, count: int) -> dict[str, float]:
    """Two prompts take turns on a device that holds one; the hits in host memory by "outcome, reason"."""
    spec = tiny_spec("kimi")
    backend = PricedBackend(spec, pool_sizes(spec, blocks=14, slots=4, host=64), INSTANT, sleep=lambda _: None, audit=True)
    backend.promised, backend.taken_s = promised, taken_s
    metrics = MetricSet(Emitter.WORKER)
    settings = EngineSettings(kind="emulated", max_running=2, max_step_tokens=16, state_snapshot_blocks=2)
    engine = LoopedEngine(backend, settings, metrics=metrics, clock=TickingClock())
    requests = [ask(prompt(36, seed=seed), name=str(seed)) for seed in (1, 2)]
    try:
        for _ in range(count):
            for request in requests:
                assert answers(await drain(engine.submit(request))) == answers(await truth(spec, request))
        assert_nothing_held(engine)
    finally:
        await engine.close()
    lines = [line for line in metrics.render().decode().splitlines() if line.startswith("prfaas_host_tier_hits_total{")]
    assert all('origin="prompt"' in line for line in lines)
    found = {}
    for line in lines:
        labels, value = line.removeprefix("prfaas_host_tier_hits_total{").split("} ")
        parts = dict(part.split("=") for part in labels.replace('"', "").split(","))
        found[f"{parts['outcome']}, {parts['reason']}"] = float(value)
    return found


async def test_cheap_copies_are_restored() -> None:
    found = await rounds(CopyCost(1e-6, 0.0), 1e-6, 4)
    assert set(found) == {"restored, faster"}
    assert found["restored, faster"] >= 5


async def test_dear_copies_are_not() -> None:
    found = await rounds(CopyCost(1e3, 0.0), 1e3, 4)
    assert set(found) == {"computed, faster"}


async def test_a_promise_that_restores_do_not_keep_wears_off() -> None:
    found = await rounds(CopyCost(1e-3, 0.0), 10.0, 12)
    assert found["restored, faster"] >= 1
    assert found["computed, faster"] > found["restored, faster"]
