"""Builders for router tests: workers, views and a scripted decode worker on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from decode_service.pb_codec import failed_event
from decode_service.session import Requests, Session, Tell
from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.convert import to_pb_prefill_report, to_pb_token_output, to_pb_usage
from prfaas.errors import PrfaasError
from prfaas.modelspec import CacheSpec
from prfaas.pb import decode_pb2, decode_pb2_grpc
from prfaas.types import (
    CacheGroupInfo,
    FinishReason,
    GenerationRequest,
    GroupKind,
    LinkView,
    RequestId,
    Role,
    Route,
    SamplingParams,
    SiteId,
    TokenOutput,
    Usage,
    WorkerId,
    WorkerInfo,
)
from router.facts import cache_spec
from router.policy.view import FleetView, Link, RequestView, Tuning, WorkerView
from tests.support.reports import prefill_report

MODEL = "m"
PD, FAR = SiteId("pd"), SiteId("far")
FULL = (CacheGroupInfo("attn", GroupKind.FULL, 1024),)


def worker_info(worker_id: str, role: Role = Role.DECODE, site: str = "pd", **changes: Any) -> WorkerInfo:
    values: dict[str, Any] = {
        "worker_id": WorkerId(worker_id),
        "incarnation": "1",
        "site": SiteId(site),
        "role": role,
        "address": f"127.0.0.1:{9000 + len(worker_id)}",
        "model": MODEL,
        "fingerprint_digest": "f",
        "max_context_tokens": 200_000,
        "block_tokens": 16,
        "total_blocks": 100_000,
        "max_running": 8,
        "device": "test",
        "cache_groups": FULL,
    }
    return WorkerInfo(**(values | changes))


def worker_view(worker_id: str, role: Role = Role.DECODE, site: str = "pd", **changes: Any) -> WorkerView:
    info = worker_info(worker_id, role, site)
    values: dict[str, Any] = {
        "worker_id": info.worker_id,
        "site": info.site,
        "role": role,
        "address": info.address,
        "model": MODEL,
        "fingerprint_digest": "f",
        "max_prompt_tokens": info.max_context_tokens - 1,
        "cache": cache_spec(info),
        "max_running": info.max_running,
        "seen_s": 0.0,
        "free_tokens": info.total_blocks * info.block_tokens,
    }
    return WorkerView(**(values | changes))


def block_spec(block_tokens: int) -> CacheSpec:
    return cache_spec(worker_info("w", block_tokens=block_tokens))


def fleet_view(
    *workers: WorkerView,
    threshold: int = 2048,
    scarce: tuple[Link, ...] = (),
    folded: tuple[Link, ...] = (),
    links: tuple[LinkView, ...] = (),
) -> FleetView:
    doors = [w for w in workers if w.role.opens_prefill]
    sites = dict.fromkeys(w.site for w in doors)
    return FleetView(
        decode=tuple(sorted((w for w in workers if not w.role.opens_prefill), key=lambda w: w.load)),
        prefill={s: tuple(sorted((w for w in doors if w.site == s), key=lambda w: w.queued_s)) for s in sites},
        links={Link(v.src, v.dst): v for v in links},
        tuning=Tuning(threshold, frozenset(scarce), frozenset(folded)),
        member_timeout_s=3.0,
    )


def request_view(num_tokens: int, max_tokens: int = 16, **cached: int) -> RequestView:
    return RequestView(MODEL, num_tokens, max_tokens, {WorkerId(k): v for k, v in cached.items()})


def generation_request(num_tokens: int = 100, request_id: str = "r", **changes: Any) -> GenerationRequest:
    values: dict[str, Any] = {
        "request_id": RequestId(request_id),
        "model": MODEL,
        "tokens": tuple(range(num_tokens)),
        "sampling": SamplingParams(max_tokens=4),
    }
    return GenerationRequest(**(values | changes))


Call = decode_pb2.GenerateRequest
Script = Callable[["ScriptedDecode", Call], AsyncIterator[decode_pb2.GenerateEvent]]


class ScriptedDecode(decode_pb2_grpc.DecodeServiceServicer):
    """A decode worker that does what its script says and remembers what it was asked, and what was cancelled."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.session: Session | None = None
        self.calls: list[Call] = []
        self.cancelled = asyncio.Event()
        self.address = ""

    async def Generate(self, requests: Requests, context: grpc.aio.ServicerContext) -> None:
        self.session = Session(self._serve)
        await self.session.run(requests, context)

    async def _serve(self, request: Call, tell: Tell) -> None:
        self.calls.append(request)
        try:
            async for event in self.script(self, request):
                tell(event)
        except PrfaasError as error:
            tell(failed_event(error))
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def prefilled(worker: str = "p", route: Route = Route.LOCAL, **changes: Any) -> decode_pb2.GenerateEvent:
    told = {"route": route, "worker_id": WorkerId(worker), "cached_tokens": 0, "kv_bytes": 10, "attempts": (), **changes}
    return decode_pb2.GenerateEvent(prefilled=to_pb_prefill_report(prefill_report(**told)))


def token(position: int, last: bool = False) -> decode_pb2.GenerateEvent:
    output = TokenOutput(0, position, 7 + position, finish_reason=FinishReason.LENGTH if last else None)
    return decode_pb2.GenerateEvent(tokens=decode_pb2.Tokens(outputs=[to_pb_token_output(output)]))


def finished(prompt: int = 100, completion: int = 2) -> decode_pb2.GenerateEvent:
    return decode_pb2.GenerateEvent(finished=to_pb_usage(Usage(prompt, completion, 0)))


async def answer_well(_: ScriptedDecode, call: Call) -> AsyncIterator[decode_pb2.GenerateEvent]:
    yield prefilled(route=Route(call.decision.route))
    yield token(0)
    yield token(1, last=True)
    yield finished(len(call.request.tokens))


def answer_when(go: asyncio.Event) -> Script:
    """Answers well, but not before it may."""

    async def script(worker: ScriptedDecode, call: Call) -> AsyncIterator[decode_pb2.GenerateEvent]:
        await go.wait()
        async for event in answer_well(worker, call):
            yield event

    return script


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[ScriptedDecode]:
    """A scripted decode worker on a loopback port; `address` tells where."""
    worker, server = ScriptedDecode(script), rpc.server()
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(worker, server)
    port = rpc.bind(server, "127.0.0.1", 0, TlsSettings())
    worker.address = f"127.0.0.1:{port}"
    await server.start()
    try:
        yield worker
    finally:
        await server.stop(grace=None)


async def eventually(condition: Callable[[], bool] | Callable[[], Awaitable[bool]], within_s: float = 5.0) -> None:
    """Wait until a condition holds; fails the test when it does not in time."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 -- conditions of other parties have no event to wait for
            await asyncio.sleep(0.005)
