"""The dummy backends of `benchmarks.http_overhead`: they answer at once with as many tokens as were asked for.

    python -m benchmarks.http_ends http --port N            # an OpenAI-compatible server, behind every other proxy
    python -m benchmarks.http_ends worker --registry H:P    # a decode worker without an engine, behind this router

Both send a token as one message of its own, without computing anything: what is measured in front of them is the proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from typing import Any, cast

import uvloop
from httptools import HttpRequestParser

from decode_service.pb_codec import finished_event, prefilled_event, tokens_event
from decode_service.session import Context, Requests, Session, Tell
from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.pb import decode_pb2, decode_pb2_grpc
from prfaas.types import (
    CacheEvent,
    FinishReason,
    LinkView,
    PrefillReport,
    Role,
    Route,
    SiteId,
    TokenOutput,
    Usage,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)
from prfaas.worker.registration import Registration

MODEL = "m"
PLAIN = TlsSettings()


class DummyServer(asyncio.Protocol):
    """One keep-alive connection. `gap_s` of the body is the time between two tokens of a stream."""

    def __init__(self) -> None:
        self._parser = HttpRequestParser(self)
        self._body = bytearray()
        self._url = b""
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url, self._body = url, bytearray()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            models = {"object": "list", "data": [{"id": MODEL, "object": "model"}], "model_path": MODEL}
            self._send(json.dumps(models).encode())
            return
        ask = json.loads(self._body)
        if ask.get("stream"):
            self._task = asyncio.create_task(self._stream(int(ask["max_tokens"]), float(ask.get("user") or 0)))
        else:
            self._send(json.dumps(_document(" word" * int(ask["max_tokens"]))).encode())

    def _send(self, body: bytes) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._write(head.encode() + body)

    async def _stream(self, num_tokens: int, gap_s: float) -> None:
        self._write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(num_tokens):
            self._chunk(b"data: " + json.dumps(_document(" word")).encode() + b"\n\n")
            await asyncio.sleep(gap_s)
        self._chunk(b"data: [DONE]\n\n")
        self._write(b"0\r\n\r\n")

    def _chunk(self, data: bytes) -> None:
        self._write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _document(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": None, "logprobs": None}
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": MODEL, "choices": [choice]}


class DummyDecode(decode_pb2_grpc.DecodeServiceServicer):
    """A decode worker that has nothing to decode."""

    async def Generate(self, requests: Requests, context: Context) -> None:
        await Session(self._serve).run(requests, context)

    async def _serve(self, request: decode_pb2.GenerateRequest, tell: Tell) -> None:
        gap_s = float(request.request.tenant) if request.request.tenant.replace(".", "").isdigit() else 0.0
        tell(prefilled_event(PrefillReport(Route.INLINE, WorkerId("dummy"), 0, 0.0, 0.0, 0.0, 0.0, 0)))
        most = request.request.sampling.max_tokens
        for position in range(most):
            last = FinishReason.LENGTH if position == most - 1 else None
            tell(tokens_event((TokenOutput(0, position, 1000 + position % 1000, finish_reason=last),)))
            await asyncio.sleep(gap_s)
        tell(finished_event(Usage(len(request.request.tokens), most, 0)))


class Idle:
    """Implements `prfaas.worker.registration.Reporter`: endless room."""

    def __init__(self, address: str) -> None:
        self._info = WorkerInfo(
            worker_id=WorkerId("dummy"),
            incarnation="1",
            site=SiteId("pd"),
            role=Role.DECODE,
            address=address,
            model=MODEL,
            fingerprint_digest="dummy",
            max_context_tokens=8192,
            block_tokens=64,
            total_blocks=1_000_000,
            max_running=4096,
            device="none",
        )

    def info(self) -> WorkerInfo:
        return self._info

    def load(self) -> WorkerLoad:
        return WorkerLoad(free_blocks=1_000_000)

    def links(self) -> tuple[LinkView, ...]:
        return ()

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        return ()

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        return 0, ()


async def serve_http(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(DummyServer, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


async def serve_worker(registry: str) -> None:
    server = rpc.server()
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(DummyDecode(), server)  # type: ignore[no-untyped-call]
    port = rpc.bind(server, "127.0.0.1", 0, PLAIN)
    await server.start()
    async with rpc.channel(registry, PLAIN) as channel:
        await Registration(channel, Idle(f"127.0.0.1:{port}"), heartbeat_s=0.5, news=asyncio.Event()).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("http", "worker"))
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--registry", default="")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve_http(options.port) if options.kind == "http" else serve_worker(options.registry))
    return 0


if __name__ == "__main__":
    sys.exit(main())
