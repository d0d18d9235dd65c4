"""How requests of a running engine end before their time: cancelled, failed, late, refused, closed."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from prfaas.clock import ManualClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted
from prfaas.engine.backend import LayerHook
from prfaas.engine.emulated import EmulatedBackend
from prfaas.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    OutOfBlocks,
    PromptTooLong,
    QueueFull,
    RequestCancelled,
)
from prfaas.planner.profile import Curve, HardwareProfile
from prfaas.sched.plan import StepPlan, StepResult
from tests.support.engine_streams import ANSWER, answers, ask, assert_nothing_held, drain, prompt, truth, until
from tests.support.tiny_specs import INSTANT, emulated_engine, pool_sizes, tiny_spec


def assert_opened(gate: threading.Event) -> None:
    assert gate.wait(20)


@pytest.mark.parametrize("export", [False, True])
async def test_cancelling_in_mid_step_answers_at_once_and_frees_after_it(export: bool) -> None:
    spec, gate = tiny_spec("kimi"), threading.Event()
    backend = EmulatedBackend(spec, pool_sizes(spec), INSTANT, sleep=lambda _: assert_opened(gate))
    engine = emulated_engine(spec, backend=backend)
    stream = engine.submit(ask(prompt(60)), export=export)
    events = stream.events()
    assert isinstance(await anext(events), Admitted)
    stream.cancel()
    stream.cancel()
    with pytest.raises(RequestCancelled):
        await anext(events)
    assert engine.counters()["blocks_used"] > 0  # the running step still writes to them
    gate.set()
    await until(lambda: engine.counters()["blocks_used"] == 0)
    assert_nothing_held(engine)
    await engine.close()


async def test_a_failing_step_fails_its_sequences_and_the_engine_goes_on() -> None:
    spec = tiny_spec("everything")
    broken = iter([False, True])

    def sleep(_: float) -> None:
        if next(broken, False):
            raise MemoryError("the device is full")

    engine = emulated_engine(spec, backend=EmulatedBackend(spec, pool_sizes(spec), INSTANT, sleep=sleep))
    with pytest.raises(EngineFailed, match="MemoryError"):
        await drain(engine.submit(ask(prompt(30))))
    assert_nothing_held(engine)
    request = ask(prompt(30))
    assert answers(await drain(engine.submit(request))) == answers(await truth(spec, request))
    await engine.close()


class SpoilingBackend(EmulatedBackend):
    """Gives an error for every row of a request with seed 13."""

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        rows = dict(super().execute(plan, on_layer).rows)
        for row in plan.rows:
            if any(draw.params.seed == 13 for draw in row.draws):
                broken = tuple(replace(each, error=EngineFailed("no grammar")) for each in rows[row.sequence_id].drawn)
                rows[row.sequence_id] = replace(rows[row.sequence_id], drawn=broken)
        return StepResult(rows)


@pytest.mark.parametrize("export", [False, True])
async def test_a_row_that_fails_ends_its_own_request_alone(export: bool) -> None:
    spec = tiny_spec("kimi")
    engine = emulated_engine(spec, backend=SpoilingBackend(spec, pool_sizes(spec), INSTANT, sleep=lambda _: None))
    good = [engine.submit(ask(prompt(20, seed), n=2)) for seed in (1, 2)]
    bad = engine.submit(ask(prompt(20, 3), n=3, seed=13), export=export)
    with pytest.raises(EngineFailed, match="no grammar"):
        await drain(bad)
    for stream in good:
        assert len(answers(await drain(stream), index=1)) == ANSWER
    assert_nothing_held(engine)
    await engine.close()


async def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    spec, clock = tiny_spec("kimi"), ManualClock()
    slow = HardwareProfile("slow", Curve((0.0, 1.0), (1.0, 1.0)), Curve((1.0, 2.0), (1.0, 1.0)), 4)
    engine = emulated_engine(spec, clock=clock, backend=EmulatedBackend(spec, pool_sizes(spec), slow, sleep=clock.advance))
    request = replace(ask(prompt(20), max_tokens=200), deadline_s=30.0)
    with pytest.raises(DeadlineExceeded):
        await drain(engine.submit(request))
    assert 30.0 <= clock.now_s() <= 40.0
    assert_nothing_held(engine)
    await engine.close()


async def test_an_export_that_is_kept_past_its_deadline_does_not_keep_the_engine_awake() -> None:
    spec, clock = tiny_spec("kimi"), ManualClock()
    engine = emulated_engine(spec, clock=clock)
    stream = engine.submit(replace(ask(prompt(20)), deadline_s=30.0), export=True)
    await drain(stream)
    assert engine.counters()["exports_pinned"] == 1
    clock.advance(31.0)
    assert engine._core.next_deadline_s() is None
    stream.release()
    assert_nothing_held(engine)
    await engine.close()


async def test_closing_ends_every_stream() -> None:
    engine = emulated_engine(tiny_spec("kimi"))
    stream = engine.submit(ask(prompt(100), max_tokens=100))
    await engine.close()
    with pytest.raises(RequestCancelled):
        await drain(stream)
    with pytest.raises(Draining):
        engine.submit(ask(prompt(3)))


async def test_refusals_are_typed() -> None:
    settings = EngineSettings(kind="emulated", max_running=1, max_waiting=1, max_step_tokens=16)
    engine = emulated_engine(tiny_spec("kimi"), settings=settings)
    with pytest.raises(InvalidRequest):
        engine.submit(ask([]))
    with pytest.raises(InvalidRequest):
        engine.submit(ask([1000]))
    with pytest.raises(InvalidRequest):
        engine.submit(ask([1], max_tokens=0))
    with pytest.raises(PromptTooLong) as too_long:
        engine.submit(ask(prompt(600)))
    assert too_long.value.detail["excess_tokens"] == 600 + 1 - 512
    with pytest.raises(OutOfBlocks):
        engine.submit(ask(prompt(300)))
    engine.drain()
    with pytest.raises(Draining):
        engine.submit(ask(prompt(3)))
    with pytest.raises(Draining):
        await engine.reserve(ask(prompt(3)), timeout_s=1)
    engine.resume()
    await drain(engine.submit(ask(prompt(3))))
    assert_nothing_held(engine)
    await engine.close()


async def test_a_full_queue_says_when_to_come_back() -> None:
    settings = EngineSettings(kind="emulated", max_running=1, max_waiting=2, max_step_tokens=16)
    engine = emulated_engine(tiny_spec("kimi"), settings=settings)
    holder = await engine.reserve(ask(prompt(220)), timeout_s=5)  # nobody is admitted beside it
    streams = [engine.submit(ask(prompt(60, seed=i))) for i in range(2)]
    with pytest.raises(QueueFull) as full:
        engine.submit(ask(prompt(60, seed=9)))
    assert full.value.retry_after_s is not None
    assert full.value.retry_after_s > 0
    holder.abort()
    for stream in streams:
        await drain(stream)
    await engine.close()
