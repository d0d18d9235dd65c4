"""The decode door over real gRPC, in front of an engine that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from decode_service.worker import serve_decode
from prfaas import rpc
from prfaas.clock import MonotonicClock
from prfaas.config import TlsSettings, WorkerSettings
from prfaas.convert import from_pb_prefill_report, from_pb_token_output, to_pb_decision, to_pb_generation_request
from prfaas.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    PrfaasError,
    PromptTooLong,
    UnknownModel,
)
from prfaas.metrics import Emitter, MetricSet
from prfaas.pb import decode_pb2, decode_pb2_grpc
from prfaas.types import Decision, PrefillCandidate, Route, SiteId, WorkerId
from prfaas.worker.gate import Gate
from tests.support.scripted import ScriptedEngine, ScriptedStream, ScriptedTransport, deliver, make_request, story
from tests.support.waiting import until

PLAIN = TlsSettings()
SETTINGS = WorkerSettings(
    worker_id="d1", site="pd", role="decode", model="m", served_model_name="scripted", router_address="127.0.0.1:1"
)
FAR = PrefillCandidate(WorkerId("far"), SiteId("prefill"), "far:1", Route.REMOTE)


class Door:
    """A decode door with its engine, transport and gate, and a client."""

    def __init__(self, engine: ScriptedEngine, transport: ScriptedTransport) -> None:
        self.engine = engine
        self.transport = transport
        self.gate = Gate("decode")
        self.gate.open()
        self.stub: Any = None

    def call(self, *candidates: PrefillCandidate, timeout: float | None = None, **changes: object) -> Any:
        decision = Decision(
            decode_worker=WorkerId("d1"),
            decode_address="d1:1",
            route=candidates[0].route if candidates else Route.INLINE,
            candidates=candidates,
            reasons=(),
            uncached_tokens=10,
            threshold_tokens=5,
        )
        message = decode_pb2.GenerateRequest(
            request=to_pb_generation_request(make_request(10, **changes)), decision=to_pb_decision(decision)
        )
        return self.stub.Generate(message, timeout=timeout)

    async def failure(self, call: Any) -> PrfaasError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [event async for event in call]
        return rpc.from_rpc(caught.value)


@asynccontextmanager
async def door(engine: ScriptedEngine | None = None, transport: ScriptedTransport | None = None) -> AsyncIterator[Door]:
    made = Door(engine or ScriptedEngine(), transport or ScriptedTransport())
    server = rpc.server()
    serve_decode(
        server,
        SETTINGS,
        engine=made.engine,
        transport=made.transport,
        metrics=MetricSet(Emitter.WORKER),
        clock=MonotonicClock(),
        admit=made.gate.admit,
    )
    port = rpc.bind(server, "127.0.0.1", 0, PLAIN)
    await server.start()
    async with rpc.channel(f"127.0.0.1:{port}", PLAIN) as channel:
        made.stub = decode_pb2_grpc.DecodeServiceStub(channel)  # type: ignore[no-untyped-call]
        try:
            yield made
        finally:
            await server.stop(None)


async def test_a_transfer_then_tokens_then_usage() -> None:
    async with door(transport=ScriptedTransport(deliver(cached_tokens=6))) as served:
        events = [event async for event in served.call(FAR)]
    kinds = [event.WhichOneof("event") for event in events]
    assert (kinds[0], kinds[-1]) == ("prefilled", "finished")
    report = from_pb_prefill_report(events[0].prefilled)
    assert (report.route, report.worker_id, report.kv_bytes) == (Route.REMOTE, "far", 120)
    outputs = [from_pb_token_output(o) for event in events for o in event.tokens.outputs]
    assert [output.token_id for output in outputs] == [7, 8]
    assert events[-1].finished.cached_tokens == 6
    assert served.gate.inside == 0


async def test_a_client_that_leaves_during_decode_stops_the_engine() -> None:
    never = asyncio.Event()
    stream = ScriptedStream([*story(7, 8)[:2], never])
    async with door(ScriptedEngine(stream)) as served:
        call = served.call()
        await call.read()
        assert stream.cancelled == 0
        call.cancel()
        await until(lambda: stream.cancelled, timeout_s=1.0)
        await until(lambda: served.gate.inside == 0, timeout_s=1.0)


async def test_a_client_that_leaves_during_prefill_stops_the_transfer() -> None:
    transport = ScriptedTransport(None)
    async with door(transport=transport) as served:
        call = served.call(FAR)
        await until(transport.started.is_set)
        call.cancel()
        await until(lambda: transport.cancelled == 1, timeout_s=1.0)
        await until(lambda: served.engine.landings[0].aborted == 1, timeout_s=1.0)
        await until(lambda: served.gate.inside == 0, timeout_s=1.0)
        assert served.engine.submitted == []


async def test_a_client_that_does_not_read_is_cancelled_too() -> None:
    """The engine runs far ahead of a reader who takes one message: flow control holds the call in a write."""
    stream = ScriptedStream([*story(*range(200_000))[:-1], asyncio.Event()])
    async with door(ScriptedEngine(stream)) as served:
        call = served.call()
        await call.read()
        await asyncio.sleep(0.2)
        call.cancel()
        await until(lambda: stream.cancelled, timeout_s=5.0)
        await until(lambda: served.gate.inside == 0, timeout_s=5.0)


async def test_the_requests_deadline_ends_it_with_a_typed_error() -> None:
    stream = ScriptedStream([*story(7, 8)[:2], asyncio.Event()])
    async with door(ScriptedEngine(stream)) as served:
        error = await served.failure(served.call(deadline_s=0.1))
        assert isinstance(error, DeadlineExceeded)
        assert stream.cancelled == 1
        assert served.gate.inside == 0


async def test_the_deadline_counts_during_prefill_too() -> None:
    transport = ScriptedTransport(None)
    async with door(transport=transport) as served:
        error = await served.failure(served.call(FAR, deadline_s=0.1))
        assert isinstance(error, DeadlineExceeded)
        assert transport.cancelled == 1
        assert served.engine.landings[0].aborted == 1


async def test_the_engines_failure_reaches_the_caller_after_the_tokens_before_it() -> None:
    stream = ScriptedStream([*story(7, 8)[:2], EngineFailed("step failed", step=3)])
    async with door(ScriptedEngine(stream)) as served:
        call = served.call()
        first = [await call.read(), await call.read()]
        assert [event.WhichOneof("event") for event in first] == ["prefilled", "tokens"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        error = rpc.from_rpc(caught.value)
        assert isinstance(error, EngineFailed)
        assert error.detail == {"step": 3}


async def test_a_stream_that_just_stops_is_a_failure_not_a_success() -> None:
    async with door(ScriptedEngine(ScriptedStream(story(7, 8)[:2]))) as served:
        assert isinstance(await served.failure(served.call()), EngineFailed)


async def test_a_refused_request_is_a_typed_error() -> None:
    async with door(ScriptedEngine(refuse=PromptTooLong("too long", excess_tokens=3))) as served:
        error = await served.failure(served.call())
        assert isinstance(error, PromptTooLong)
        assert error.detail["excess_tokens"] == 3
        assert served.gate.inside == 0


async def test_a_closed_door_refuses() -> None:
    async with door() as served:
        served.gate.close()
        assert isinstance(await served.failure(served.call()), Draining)
        assert served.engine.submitted == []


async def test_an_unknown_route_names_its_field() -> None:
    async with door() as served:
        message = decode_pb2.GenerateRequest(decision=decode_pb2.Decision(route="by-post"))
        error = await served.failure(served.stub.Generate(message))
        assert isinstance(error, InvalidRequest)
        assert error.param == "decision.route"


async def test_another_model_is_refused() -> None:
    async with door() as served:
        error = await served.failure(served.call(model="another"))
        assert isinstance(error, UnknownModel)
        assert served.engine.submitted == []


class BrokenEngine(ScriptedEngine):
    """An engine with a bug."""

    def submit(self, request: object, *, export: bool = False) -> ScriptedStream:
        raise RuntimeError("a bug")


async def test_a_bug_ends_the_call_with_a_typed_error_too() -> None:
    async with door(BrokenEngine()) as served:
        error = await served.failure(served.call())
        assert isinstance(error, EngineFailed)
        assert "RuntimeError" in error.message
        assert served.gate.inside == 0
