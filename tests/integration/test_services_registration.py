"""A worker stays known to the router, whatever the router forgets and however often it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc.aio

from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.convert import from_pb_cache_event
from prfaas.pb import registry_pb2
from prfaas.types import (
    BlockHash,
    CacheEvent,
    CacheEventKind,
    CacheTier,
    LinkView,
    Role,
    SiteId,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)
from prfaas.worker.registration import Registration
from tests.support.registry import Router, serving
from tests.support.waiting import until

PLAIN = TlsSettings()
FAST_S = 0.02
INFO = WorkerInfo(
    worker_id=WorkerId("w1"),
    incarnation="first",
    site=SiteId("pd"),
    role=Role.DECODE,
    address="127.0.0.1:1",
    model="m",
    fingerprint_digest="f",
    max_context_tokens=100,
    block_tokens=4,
    total_blocks=8,
    max_running=2,
    device="cpu",
)


def stored(seq: int) -> CacheEvent:
    return CacheEvent(seq, CacheEventKind.STORED, "full", CacheTier.DEVICE, (BlockHash(bytes(16)),))


@dataclass
class Worker:
    """A worker as its registration sees it."""

    description: WorkerInfo = INFO
    busy: WorkerLoad = field(default_factory=WorkerLoad)
    events: list[CacheEvent] = field(default_factory=list)

    def info(self) -> WorkerInfo:
        return self.description

    def load(self) -> WorkerLoad:
        return self.busy

    def links(self) -> tuple[LinkView, ...]:
        return (LinkView(SiteId("far"), SiteId("pd"), rtt_s=0.5),)

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        taken, self.events = tuple(self.events), []
        return taken

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        return 7, (stored(6),)


@asynccontextmanager
async def registering(
    worker: Worker, port: int, news: asyncio.Event | None = None, heartbeat_s: float = FAST_S
) -> AsyncIterator[Registration]:
    channel: grpc.aio.Channel
    async with rpc.channel(f"127.0.0.1:{port}", PLAIN) as channel:
        registration = Registration(channel, worker, heartbeat_s=heartbeat_s, news=news or asyncio.Event())
        task = asyncio.create_task(registration.run())
        try:
            yield registration
        finally:
            task.cancel()
            await asyncio.wait([task])


async def test_a_worker_introduces_itself_with_its_cache_and_then_its_load() -> None:
    router, worker = Router(), Worker(busy=WorkerLoad(running=2, free_blocks=3), events=[stored(5)])
    async with serving(router) as port, registering(worker, port):
        await until(lambda: router.heartbeats)
        assert router.registered == [INFO]
        assert router.snapshots[0].next_seq == 7
        assert [from_pb_cache_event(e) for e in router.snapshots[0].contents] == [stored(6)]
        heartbeat = router.heartbeats[0]
        assert (heartbeat.load.running, heartbeat.load.free_blocks) == (2, 3)
        assert heartbeat.links[0].rtt_s == 0.5
        assert not heartbeat.cache_events  # what happened before the snapshot is in it


async def test_cache_events_travel_with_heartbeats_once() -> None:
    router, worker = Router(), Worker()
    async with serving(router) as port, registering(worker, port):
        await until(lambda: router.heartbeats)
        worker.events.append(stored(8))
        seen = len(router.heartbeats) + 3
        await until(lambda: len(router.heartbeats) >= seen)
    sent = [from_pb_cache_event(e) for heartbeat in router.heartbeats for e in heartbeat.cache_events]
    assert sent == [stored(8)]


async def test_a_router_that_forgot_is_told_again() -> None:
    router = Router()
    async with serving(router) as port, registering(Worker(), port):
        await until(lambda: router.heartbeats)
        router.forget = True
        await until(lambda: len(router.registered) == 2 and len(router.snapshots) == 2)


class Amnesiac(Router):
    """A registry that knows nobody, like one of two behind an address that leads to either."""

    async def Heartbeat(self, request: registry_pb2.HeartbeatRequest, context: Any) -> registry_pb2.HeartbeatReply:
        self.heartbeats.append(request)
        return registry_pb2.HeartbeatReply(known=False)


async def test_a_router_that_always_forgets_is_not_flooded() -> None:
    router = Amnesiac()
    async with serving(router) as port, registering(Worker(), port, heartbeat_s=0.1):
        await asyncio.sleep(0.55)
    assert 2 <= len(router.registered) <= 6


async def test_a_router_with_a_gap_gets_a_snapshot_without_a_registration() -> None:
    router = Router()
    async with serving(router) as port, registering(Worker(), port):
        await until(lambda: router.heartbeats)
        router.resync = True
        await until(lambda: len(router.snapshots) == 2)
        assert len(router.registered) == 1


async def test_a_worker_waits_for_a_router_that_starts_later_and_for_one_that_restarts() -> None:
    first, second = Router(), Router()
    async with serving(Router()) as port:
        pass
    async with registering(Worker(), port):
        await asyncio.sleep(5 * FAST_S)
        async with serving(first, port):
            await until(lambda: first.heartbeats)
        async with serving(second, port):
            await until(lambda: second.snapshots)
    assert (len(first.registered), len(second.registered)) == (1, 1)
    assert len(second.snapshots) == 1


async def test_a_changed_role_is_registered_again_at_once() -> None:
    router, worker, news = Router(), Worker(), asyncio.Event()
    async with serving(router) as port, registering(worker, port, news, heartbeat_s=60.0):
        await until(lambda: router.heartbeats)
        worker.description = replace(INFO, role=Role.PD_PREFILL)
        news.set()
        await until(lambda: len(router.registered) == 2)
    assert router.registered[1].role is Role.PD_PREFILL


async def test_news_of_load_does_not_wait_for_the_next_heartbeat() -> None:
    router, worker, news = Router(), Worker(), asyncio.Event()
    async with serving(router) as port, registering(worker, port, news, heartbeat_s=60.0):
        await until(lambda: router.heartbeats)
        worker.busy = WorkerLoad(draining=True)
        news.set()
        await until(lambda: router.heartbeats[-1].load.draining)
    assert len(router.registered) == 1


async def test_the_router_may_ask_to_hear_more_often_but_not_less() -> None:
    eager, lazy = Router(heartbeat_s=FAST_S), Router(heartbeat_s=60.0)
    async with serving(eager) as port, registering(Worker(), port, heartbeat_s=60.0):
        await until(lambda: len(eager.heartbeats) >= 3)
    async with serving(lazy) as port, registering(Worker(), port, heartbeat_s=FAST_S):
        await until(lambda: len(lazy.heartbeats) >= 3)


async def test_goodbye_names_the_incarnation_and_needs_no_listener() -> None:
    router = Router()
    async with serving(router) as port:
        async with registering(Worker(), port) as registration:
            await registration.deregister()
        assert [(g.worker_id, g.incarnation) for g in router.goodbyes] == [("w1", "first")]
    async with registering(Worker(), port) as registration:
        goodbye: Awaitable[None] = registration.deregister()
        await asyncio.wait_for(goodbye, 5.0)
