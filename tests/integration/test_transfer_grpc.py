"""A transfer over real gRPC on loopback: right bytes, typed errors, cancellation, nothing left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from kv_transport.grpc_client import GrpcPrefillTransport
from kv_transport.grpc_server import TransferServer, serve_transfers
from prfaas import rpc
from prfaas.clock import MonotonicClock
from prfaas.config import TransportSettings
from prfaas.errors import EngineFailed, FingerprintMismatch, QueueFull, WorkerUnreachable
from prfaas.modelspec import Fingerprint
from prfaas.types import SiteId, WorkerId
from tests.support.kv_source import FakeHandler, FakeSource, KeepingSink, hybrid_offer, order_of, source_of


@dataclass
class Link:
    transport: GrpcPrefillTransport
    server: TransferServer
    address: str


@asynccontextmanager
async def link(handler: FakeHandler, settings: TransportSettings | None = None) -> AsyncIterator[Link]:
    settings = settings or TransportSettings(chunk_bytes=4096)
    server = rpc.server()
    clock = MonotonicClock()
    transfers = serve_transfers(server, handler, settings, worker_id=WorkerId("p0"), site=SiteId("east"), clock=clock)
    port = rpc.bind(server, "127.0.0.1", 0, settings.tls)
    await server.start()
    transport = GrpcPrefillTransport(settings, SiteId("west"), clock)
    try:
        yield Link(transport, transfers, f"127.0.0.1:{port}")
    finally:
        await transport.close()
        await transfers.close()
        await server.stop(None)


async def released(source: FakeSource) -> bool:
    async with asyncio.timeout(5):
        while not source.released:
            await asyncio.sleep(0.005)
    return source.released[0]


@pytest.mark.parametrize("lanes", [1, 4])
async def test_cache_and_first_tokens_arrive(lanes: int) -> None:
    source = source_of(hybrid_offer(tokens=500), step_tokens=128, queue_events=2)
    settings = TransportSettings(chunk_bytes=4096, lanes=lanes)
    async with link(FakeHandler(source), settings) as ends:
        sink = KeepingSink()
        result = await ends.transport.fetch(order_of(500), ends.address, sink)
        sink.require(source.contents)
        assert result.first == source.first
        assert result.offer == source.contents.offer
        assert result.raw_bytes == result.wire_bytes == sum(len(p) for _, p in sink.landed)
        assert (result.codec, result.lanes, result.resumes) == ("as_is", lanes, 0)
        assert await released(source)
        assert source.released == [True]
        assert ends.server.counters()["active_transfers"] == 0
        assert ends.transport.counters()["active_transfers"] == ends.transport.counters()["open_lanes"] == 0
        (view,) = ends.transport.links()
        assert (view.src, view.dst, view.active_transfers) == ("east", "west", 0)


async def test_nothing_to_send_is_a_transfer_too() -> None:
    offer = replace(hybrid_offer(), groups=())
    source = source_of(offer)
    async with link(FakeHandler(source)) as ends:
        result = await ends.transport.fetch(order_of(), ends.address, KeepingSink())
        assert result.raw_bytes == 0
        assert await released(source)


async def test_the_handler_refuses() -> None:
    refusal = QueueFull("full", depth=3, limit=3, retry_after_s=1.5)
    async with link(FakeHandler(error=refusal)) as ends:
        with pytest.raises(QueueFull) as caught:
            await ends.transport.fetch(order_of(), ends.address, KeepingSink())
        assert caught.value.retry_after_s == 1.5
        with pytest.raises(FingerprintMismatch, match="differ in model"):
            theirs = Fingerprint(model="m2", tokenizer="t1", cache="c1")
            await ends.transport.fetch(order_of(fingerprint=theirs), ends.address, KeepingSink())
        assert ends.server.counters()["active_transfers"] == 0


async def test_the_prefill_fails_midway() -> None:
    source = source_of(fail_after=3, error=EngineFailed("boom", step=7))
    async with link(FakeHandler(source)) as ends:
        with pytest.raises(EngineFailed, match="boom") as caught:
            await ends.transport.fetch(order_of(), ends.address, KeepingSink())
        assert caught.value.detail["step"] == 7
        assert await released(source) is False
        assert ends.server.counters()["active_transfers"] == 0


@pytest.mark.parametrize("hang_after", [0, 3])
async def test_cancelling_the_fetch_stops_the_prefill(hang_after: int) -> None:
    source = source_of(hang_after=hang_after)
    async with link(FakeHandler(source)) as ends:
        fetch = asyncio.create_task(ends.transport.fetch(order_of(), ends.address, KeepingSink()))
        while source.reads < hang_after:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        fetch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetch
        assert await released(source) is False
        await asyncio.sleep(0.05)
        assert source.closed
        assert ends.server.counters()["active_transfers"] == 0


async def test_nobody_listens() -> None:
    async with link(FakeHandler()) as ends:
        with pytest.raises(WorkerUnreachable):
            await ends.transport.fetch(order_of(), "127.0.0.1:1", KeepingSink())
        assert ends.transport.counters()["active_transfers"] == 0
