"""Who is let in at the router, and when: pipelines with full workers, full queues and spent budgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from prfaas import errors
from prfaas import metrics as m
from prfaas.config import AdmissionSettings, TenantSettings
from prfaas.pb import decode_pb2
from prfaas.types import Role, Route
from router.api import Done
from tests.support.router_fleet import (
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


async def test_requests_that_fit_run_at_the_same_time() -> None:
    go = asyncio.Event()

    async with router() as r, serving(answer_when(go)) as worker:
        r.join(worker, "d1")
        tasks = [asyncio.create_task(r.collect(generation_request(request_id=str(at)))) for at in range(4)]
        await eventually(lambda: len(worker.calls) == 4)
        go.set()
        for events in await asyncio.gather(*tasks):
            assert isinstance(events[-1], Done)
        r.assert_nothing_left()


async def test_what_does_not_fit_waits_at_the_router_by_priority_and_a_leaver_makes_no_hole() -> None:
    go = asyncio.Event()

    async with router(AdmissionSettings(requests_per_slot=1.0)) as r, serving(answer_when(go)) as worker:
        r.join(worker, "a", max_running=1)
        tasks = [asyncio.create_task(r.collect(generation_request(request_id="first")))]
        await eventually(lambda: len(worker.calls) == 1)
        for name, priority in (("low", 5), ("gone", -1), ("high", -1)):
            tasks.append(asyncio.create_task(r.collect(generation_request(request_id=name, priority=priority))))
        await eventually(lambda: r.count(m.QUEUED, priority="high") == 2)
        assert r.count(m.QUEUED, priority="low") == 1
        tasks.pop(2).cancel()
        go.set()
        await asyncio.gather(*tasks)
        assert [call.request.request_id for call in worker.calls] == ["first", "high", "low"]
        assert r.count(m.QUEUED, priority="high") == 0
        assert r.count(m.ROUTED, outcome="cancelled", reason="closed_by_caller") == 1
        r.assert_nothing_left()


async def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    async def stuck(_: ScriptedDecode, call: Call) -> Events:
        await asyncio.sleep(3600)
        yield finished()

    async with router(AdmissionSettings(requests_per_slot=1.0, max_queued=1)) as r, serving(stuck) as worker:
        r.join(worker, "a", max_running=1)
        tasks = [asyncio.create_task(r.collect(generation_request()))]
        await eventually(lambda: bool(worker.calls))
        tasks.append(asyncio.create_task(r.collect(generation_request(deadline_s=0.3))))
        await eventually(lambda: r.count(m.QUEUED, priority="normal") == 1)
        with pytest.raises(errors.QueueFull) as full:
            await r.collect(generation_request())
        assert full.value.retry_after_s is not None
        with pytest.raises(errors.QueueFull, match="deadline passed"):
            await tasks.pop()
        tasks[0].cancel()
        await asyncio.wait(tasks)
        assert r.count(m.ROUTED, outcome="rejected", reason="queue_full") == 2
        r.assert_nothing_left()


async def test_a_request_that_is_late_whatever_is_done_lets_others_go_first_until_its_deadline() -> None:
    go = asyncio.Event()

    async def slow(worker: ScriptedDecode, call: Call) -> Events:
        if len(worker.calls) > 4:
            await go.wait()
        yield prefilled("a", Route.INLINE, prefill_s=6.0)
        yield token(0, last=True)
        yield finished()

    async with router() as r, serving(slow) as worker:
        r.join(worker, "a")
        for _ in range(4):  # four measurements make a forecast: six seconds are beyond the objective
            await r.collect(generation_request())
        tasks = [asyncio.create_task(r.collect(generation_request(request_id="first")))]
        await eventually(lambda: len(worker.calls) == 5)
        tasks += [asyncio.create_task(r.collect(generation_request(request_id="second")))]
        await eventually(lambda: r.count(m.QUEUED, priority="normal") == 1)
        with pytest.raises(errors.QueueFull, match="deadline passed"):
            await r.collect(generation_request(deadline_s=0.2))
        leaver = asyncio.create_task(r.collect(generation_request()))
        await eventually(lambda: r.count(m.QUEUED, priority="normal") == 2)
        leaver.cancel()
        await eventually(lambda: r.count(m.QUEUED, priority="normal") == 1)
        assert len(worker.calls) == 5, "the worker still computes the first"
        go.set()
        await asyncio.gather(*tasks)
        assert [call.request.request_id for call in worker.calls[4:]] == ["first", "second"]
        r.assert_nothing_left()


async def test_a_tenant_that_used_up_its_tokens_is_told_when_to_come_back() -> None:
    budget = AdmissionSettings(tenants={"small": TenantSettings(tokens_per_s=10, burst_s=1)})
    async with router(budget) as r, serving(answer_well) as worker:
        r.join(worker, "a")
        await r.collect(generation_request(tenant="small"))
        with pytest.raises(errors.RateLimited) as limited:
            await r.collect(generation_request(tenant="small"))
        assert 8.0 < (limited.value.retry_after_s or 0) < 9.1
        await r.collect(generation_request(tenant="other"))


async def test_a_tenant_that_used_up_its_egress_is_kept_in_its_site() -> None:
    async def ship(_: ScriptedDecode, call: Call) -> Events:
        yield prefilled("r1", Route(call.decision.route), kv_bytes=1_000_000)
        yield token(0, last=True)
        yield finished()

    budget = AdmissionSettings(tenants={"small": TenantSettings(egress_bytes_per_s=1000, burst_s=1)})
    async with router(budget) as r, serving(ship) as worker:
        r.join(worker, "a")
        r.fleet.register(worker_info("r1", Role.PREFILL, "far"))
        for tenant in ("small", "small", "other"):
            await r.collect(generation_request(5_000, tenant=tenant))
        assert [call.decision.route for call in worker.calls] == ["remote", "inline", "remote"]
