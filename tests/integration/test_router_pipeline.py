"""The router's pipeline against scripted decode workers over real gRPC on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from prfaas import errors
from prfaas import metrics as m
from prfaas.pb import decode_pb2
from prfaas.types import Role, Route, WorkerLoad
from router.api import Decided, Done, NewTokens, PipelineEvent, Prefilled
from tests.support.router_fleet import (
    PD,
    Call,
    ScriptedDecode,
    answer_well,
    answer_when,
    eventually,
    finished,
    generation_request,
    prefilled,
    serving,
    token,
    worker_info,
)
from tests.support.router_pipeline import router

Events = AsyncIterator[decode_pb2.GenerateEvent]


def story(events: list[PipelineEvent]) -> list[type[PipelineEvent]]:
    """The kinds of events; how tokens were grouped on their way is chance."""
    kinds = [type(event) for event in events]
    return [kind for at, kind in enumerate(kinds) if at == 0 or kind is not NewTokens or kinds[at - 1] is not NewTokens]


async def test_a_request_is_decided_and_streamed_and_counted_once() -> None:
    async with router() as r, serving(answer_well) as worker:
        r.join(worker, "d1")
        r.fleet.register(worker_info("p1", Role.PD_PREFILL))
        events = await r.collect(generation_request(100))
        assert story(events) == [Decided, Prefilled, NewTokens, Done]
        decided = events[0]
        assert isinstance(decided, Decided)
        assert decided.decision.route is Route.LOCAL
        assert decided.decision.candidates[0].worker_id == "p1"
        (call,) = worker.calls
        assert tuple(call.request.tokens) == tuple(range(100))
        assert call.decision.route == "local"
        assert r.count(m.ROUTED, outcome="finished", reason="finished") == 1
        assert r.count(m.ROUTE_DECISIONS, route="local", reason="short") == 1
        assert r.count(m.ROUTE_TAKEN, route="local") == 1
        assert r.count(m.KV_BYTES, route="local") == 10
        r.assert_nothing_left()


async def test_what_is_on_its_way_counts_as_load_until_it_is_over() -> None:
    go = asyncio.Event()

    async with router() as r, serving(answer_when(go)) as worker:
        r.join(worker, "d1")
        r.fleet.register(worker_info("p1", Role.PD_PREFILL))
        task = asyncio.create_task(r.collect(generation_request(100)))
        await eventually(lambda: bool(worker.calls))
        view = r.fleet.view()
        assert view.decode[0].running == 1
        assert view.prefill[PD][0].queued_tokens == 100
        go.set()
        await task
        r.assert_nothing_left()


async def test_closing_the_stream_cancels_the_worker() -> None:
    async def endless(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled()
        for position in range(1_000_000):
            yield token(position)
            await asyncio.sleep(0.01)

    async with router() as r, serving(endless) as worker:
        r.join(worker, "d1")
        async with aclosing(r.pipeline.generate(generation_request())) as events:
            async for event in events:
                if isinstance(event, NewTokens):
                    break
        await asyncio.wait_for(worker.cancelled.wait(), 5)
        assert r.count(m.ROUTED, outcome="cancelled", reason="closed_by_caller") == 1
        r.assert_nothing_left()


async def test_cancelling_the_task_cancels_the_worker_before_the_first_token() -> None:
    async def stuck(_: ScriptedDecode, call: Call) -> Events:
        await asyncio.sleep(3600)
        yield prefilled()

    async with router() as r, serving(stuck) as worker:
        r.join(worker, "d1")
        task = asyncio.create_task(r.collect(generation_request()))
        await eventually(lambda: bool(worker.calls))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(worker.cancelled.wait(), 5)
        assert r.count(m.ROUTED, outcome="cancelled", reason="closed_by_caller") == 1
        r.assert_nothing_left()


async def test_a_dead_decode_worker_costs_a_retry_and_is_avoided() -> None:
    async with router() as r, serving(answer_well) as alive:
        r.fleet.register(worker_info("a-dead", address="127.0.0.1:1"))
        r.join(alive, "b-alive")
        events = await r.collect(generation_request())
        assert story(events) == [Decided, Prefilled, NewTokens, Done]
        report = next(e.report for e in events if isinstance(e, Prefilled))
        assert report.attempts == ("a-dead:worker_unreachable",)
        assert r.count(m.FALLBACKS, reason="worker_unreachable") == 1
        assert [w.suspect for w in r.fleet.view().decode] == [True, False]
        await r.collect(generation_request())
        assert r.count(m.FALLBACKS, reason="worker_unreachable") == 1
        r.assert_nothing_left()


async def test_a_prefill_worker_that_a_decode_worker_could_not_reach_is_avoided() -> None:
    async def fell_back(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled("d1", Route.INLINE, attempts=("p1:worker_unreachable", "p2:queue_full"))
        yield token(0, last=True)
        yield finished()

    async with router() as r, serving(fell_back) as worker:
        r.join(worker, "d1")
        r.fleet.register(worker_info("p1", Role.PD_PREFILL))
        r.fleet.register(worker_info("p2", Role.PD_PREFILL))
        await r.collect(generation_request())
        assert [w.suspect for w in r.fleet.view().prefill[PD]] == [True, False]
        assert r.count(m.FALLBACKS, reason="queue_full") == 1
        assert r.count(m.ROUTE_TAKEN, route="inline") == 1


async def test_a_failure_after_the_first_token_is_not_retried() -> None:
    async def break_down(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled()
        yield token(0)
        raise errors.EngineFailed("the step failed")

    async with router() as r, serving(break_down) as first, serving(answer_well) as second:
        r.join(first, "a")
        r.join(second, "b")
        with pytest.raises(errors.EngineFailed):
            await r.collect(generation_request())
        assert not second.calls
        assert r.count(m.ROUTED, outcome="failed", reason="engine_failed") == 1
        r.assert_nothing_left()


async def test_a_failure_between_prefill_and_first_token_is_retried_unseen() -> None:
    async def break_down(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled("p-lost")
        raise errors.EngineFailed("the step failed")

    async with router() as r, serving(break_down) as first, serving(answer_well) as second:
        r.join(first, "a")
        r.join(second, "b")
        events = await r.collect(generation_request())
        reports = [e.report for e in events if isinstance(e, Prefilled)]
        assert [report.worker_id for report in reports] == ["p"]
        assert reports[0].attempts == ("a:engine_failed",)
        r.assert_nothing_left()


@pytest.mark.parametrize("fault", [errors.PromptTooLong("long", param="tokens"), errors.DeadlineExceeded("late")])
async def test_what_another_worker_cannot_mend_is_not_retried(fault: errors.PrfaasError) -> None:
    async def refuse(_: ScriptedDecode, call: Call) -> Events:
        raise fault
        yield finished()

    async with router() as r, serving(refuse) as first, serving(answer_well) as second:
        r.join(first, "a")
        r.join(second, "b")
        with pytest.raises(type(fault)):
            await r.collect(generation_request())
        assert not second.calls
        assert r.count(m.ROUTED, outcome="rejected", reason=fault.code) == 1
        r.assert_nothing_left()


async def test_every_worker_failing_gives_the_last_workers_error() -> None:
    async def full(_: ScriptedDecode, call: Call) -> Events:
        raise errors.QueueFull("full", depth=3, limit=3, retry_after_s=2.5)
        yield finished()

    async with router() as r, serving(full) as one, serving(full) as two:
        r.join(one, "a")
        r.join(two, "b")
        with pytest.raises(errors.QueueFull) as caught:
            await r.collect(generation_request())
        assert caught.value.retry_after_s == 2.5
        assert (len(one.calls), len(two.calls)) == (1, 1)
        r.assert_nothing_left()


async def test_a_stream_that_just_ends_is_an_error_not_a_short_answer() -> None:
    async def stop_short(worker: ScriptedDecode, call: Call) -> Events:
        yield prefilled()
        yield token(0)
        assert worker.session is not None
        worker.session.close()  # its stream ends once this call has, which never says how it ended

    async with router() as r, serving(stop_short) as worker:
        r.join(worker, "a")
        with pytest.raises(errors.WorkerError, match="closed its stream"):
            await r.collect(generation_request())
        r.assert_nothing_left()


async def test_events_out_of_order_are_a_violation() -> None:
    async def tokens_first(_: ScriptedDecode, call: Call) -> Events:
        yield token(0)

    async with router() as r, serving(tokens_first) as worker:
        r.join(worker, "a")
        with pytest.raises(errors.ProtocolViolation):
            await r.collect(generation_request())


async def test_refusals_before_any_worker_is_bothered() -> None:
    async with router() as r, serving(answer_well) as worker:
        with pytest.raises(errors.NoWorkerAvailable):
            await r.collect(generation_request())
        r.join(worker, "a", max_context_tokens=64)
        with pytest.raises(errors.UnknownModel):
            await r.collect(generation_request(model="other"))
        with pytest.raises(errors.PromptTooLong) as caught:
            await r.collect(generation_request(70))
        assert caught.value.detail["excess_tokens"] == 7
        assert not worker.calls
        assert r.count(m.ROUTED, outcome="rejected", reason="no_worker_available") == 1
        r.assert_nothing_left()


async def test_the_worker_learns_what_is_left_of_the_deadline_and_the_router_gives_up_after_it() -> None:
    async with router() as r, serving(answer_well) as worker:
        r.join(worker, "a")
        await r.collect(generation_request(deadline_s=9.0))
        assert 0 < worker.calls[0].request.deadline_s <= 9.0
        with pytest.raises(errors.DeadlineExceeded):
            await r.collect(generation_request(deadline_s=0.0))
        assert len(worker.calls) == 1


async def test_equal_request_ids_do_not_disturb_each_other() -> None:
    async with router() as r, serving(answer_well) as worker:
        r.join(worker, "a")
        both = await asyncio.gather(*(r.collect(generation_request(request_id="same")) for _ in range(2)))
        assert all(isinstance(events[-1], Done) for events in both)
        r.assert_nothing_left()


async def test_draining_and_silent_workers_get_nothing() -> None:
    async with router() as r, serving(answer_well) as worker:
        r.join(worker, "a")
        r.fleet.heartbeat(worker_info("a").worker_id, "1", WorkerLoad(draining=True), (), ())
        with pytest.raises(errors.NoWorkerAvailable):
            await r.collect(generation_request())


async def test_forecasts_are_held_against_what_happened_once_there_are_any() -> None:
    async def measured(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled("a", Route.INLINE, prefill_s=0.004)
        yield token(0, last=True)
        yield finished()

    async with router() as r, serving(measured) as worker:
        r.join(worker, "a")
        for _ in range(6):
            await r.collect(generation_request())
        seen = r.metrics.registry.get_sample_value(f"{m.FORECAST_RATIO.name}_count", {"route": "inline"})
        assert seen == 2  # four measurements make a forecast
        assert r.metrics.registry.get_sample_value(f"{m.REGRET.name}_count", {"route": "inline"}) == 2
        assert [len(call.decision.predicted_ttft_s) for call in worker.calls] == [0, 0, 0, 0, 1, 1]
