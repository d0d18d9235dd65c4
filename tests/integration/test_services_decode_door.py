"""The decode door over real gRPC, in front of an engine that plays a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest

from decode_service.service import DecodeService
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
    WorkerUnreachable,
)
from prfaas.metrics import Emitter, MetricSet
from prfaas.pb import decode_pb2
from prfaas.types import Decision, PrefillCandidate, Route, SiteId, WorkerId
from prfaas.worker.gate import Gate
from router.decode_stream import DecodeCall, DecodeStream
from tests.support.scripted import ScriptedEngine, ScriptedStream, ScriptedTransport, deliver, make_request, story
from tests.support.waiting import until

PLAIN = TlsSettings()
SETTINGS = WorkerSettings(
    worker_id="d1", site="pd", role="decode", model="m", served_model_name="scripted", router_address="127.0.0.1:1"
)
FAR = PrefillCandidate(WorkerId("far"), SiteId("prefill"), "far:1", Route.REMOTE)


class Door:
    """A decode door with its engine, transport and gate, and a client."""

    channel: grpc.aio.Channel
    stream: DecodeStream
    service: DecodeService

    def __init__(self, engine: ScriptedEngine, transport: ScriptedTransport) -> None:
        self.engine = engine
        self.transport = transport
        self.gate = Gate("decode")
        self.gate.open()

    async def reopen(self) -> None:
        await self.stream.close()
        self.stream = DecodeStream(self.channel, "d1")

    def call(self, *candidates: PrefillCandidate, **changes: object) -> DecodeCall:
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
        return self.stream.call(message)

    async def failure(self, call: DecodeCall) -> PrfaasError:
        with pytest.raises(PrfaasError) as caught:
            await everything(call)
        return caught.value


async def everything(call: DecodeCall) -> list[decode_pb2.GenerateEvent]:
    """All events to the last. Raises what the call ends with."""
    events = await call.take()
    while not events[-1].HasField("finished"):
        events += await call.take()
    return events


@asynccontextmanager
async def door(engine: ScriptedEngine | None = None, transport: ScriptedTransport | None = None) -> AsyncIterator[Door]:
    made = Door(engine or ScriptedEngine(), transport or ScriptedTransport())
    server = rpc.server()
    made.service = serve_decode(
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
        made.channel, made.stream = channel, DecodeStream(channel, "d1")
        try:
            yield made
        finally:
            await made.stream.close()
            await server.stop(None)


async def test_a_transfer_then_tokens_then_usage() -> None:
    async with door(transport=ScriptedTransport(deliver(cached_tokens=6))) as served:
        events = await everything(served.call(FAR))
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
        await call.take()
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
    """The engine runs far ahead of a reader who takes one message."""
    stream = ScriptedStream([*story(*range(200_000))[:-1], asyncio.Event()])
    async with door(ScriptedEngine(stream)) as served:
        call = served.call()
        await call.take()
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
        first = await call.take()
        assert [event.WhichOneof("event") for event in first] == ["prefilled", "tokens"]
        with pytest.raises(EngineFailed) as caught:
            await call.take()
        assert caught.value.detail == {"step": 3}


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
        error = await served.failure(served.stream.call(message))
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


async def test_calls_beside_each_other_end_each_for_itself() -> None:
    stream = ScriptedStream([*story(7, 8)[:2], asyncio.Event()])
    async with door(ScriptedEngine(stream)) as served:
        stays, leaves = served.call(), served.call()
        await stays.take()
        await leaves.take()
        assert served.gate.inside == 2
        leaves.cancel()
        await until(lambda: served.gate.inside == 1, timeout_s=1.0)
        assert isinstance(await served.failure(served.call(model="another")), UnknownModel)
        assert served.gate.inside == 1
        assert served.stream.num_calls == 1
        assert not served.stream.broken


async def test_a_router_that_is_gone_stops_all_its_calls() -> None:
    stream = ScriptedStream([*story(7, 8)[:2], asyncio.Event()])
    async with door(ScriptedEngine(stream)) as served:
        for call in (served.call(), served.call()):
            await call.take()
        await served.stream.close()
        await until(lambda: served.gate.inside == 0, timeout_s=1.0)
        assert stream.cancelled == 2


async def test_a_closed_service_ends_streams_when_their_last_call_has_ended() -> None:
    go = asyncio.Event()
    told = story(7, 8)
    async with door(ScriptedEngine(ScriptedStream([*told[:2], go, *told[2:]]))) as served:
        call = served.call()
        first = await call.take()
        served.service.close()
        await asyncio.sleep(0.05)
        assert not served.stream.broken
        go.set()
        rest = await everything(call)
        assert [e.WhichOneof("event") for e in (*first, *rest)] == ["prefilled", "tokens", "tokens", "finished"]
        await until(lambda: served.stream.broken, timeout_s=1.0)
        await served.reopen()
        assert isinstance(await served.failure(served.call()), WorkerUnreachable)


async def test_a_request_too_large_for_a_message_harms_no_other() -> None:
    async with door(ScriptedEngine(ScriptedStream(story(7)))) as served:
        with pytest.raises(InvalidRequest, match="more than one message carries"):
            served.call(cache_salt="x" * rpc.MAX_MESSAGE_BYTES)
        assert (await everything(served.call()))[-1].HasField("finished")
