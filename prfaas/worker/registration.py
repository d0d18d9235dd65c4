"""A worker's conversation with the router: registration, heartbeats, cache events.

It goes on for as long as the worker lives. The router may be away, or come back having forgotten everything: the
worker serves on meanwhile, and introduces itself again with its whole cache view. Knows no doors and no policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import grpc
import grpc.aio

from prfaas.convert import to_pb_cache_event, to_pb_link_view, to_pb_worker_info, to_pb_worker_load
from prfaas.log import logger
from prfaas.pb import registry_pb2, registry_pb2_grpc
from prfaas.types import CacheEvent, LinkView, WorkerInfo, WorkerLoad

CALL_TIMEOUT_S = 3.0
QUICKEST = 0.25  # news waits for this part of the interval between heartbeats, at most LONGEST_S
LONGEST_S = 1.0
PAGE_BLOCKS = 32_768  # names of a cache snapshot in one message: half a megabyte

log = logger(__name__)


class Reporter(Protocol):
    """What there is to say about a worker at any moment."""

    def info(self) -> WorkerInfo: ...

    def load(self) -> WorkerLoad: ...

    def links(self) -> tuple[LinkView, ...]: ...

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        """See `prfaas.engine.api.Engine`."""
        ...

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        """See `prfaas.engine.api.Engine`."""
        ...


def pages(events: Iterable[CacheEvent], most: int) -> Iterator[tuple[CacheEvent, ...]]:
    """The events in order in pages of at most `most` names; an event with more is cut up."""
    page: list[CacheEvent] = []
    room = most
    for event in events:
        start = 0
        while start < len(event.hashes):
            piece = event.hashes[start : start + room]
            page.append(replace(event, hashes=piece))
            start, room = start + len(piece), room - len(piece)
            if not room:
                yield tuple(page)
                page, room = [], most
    if page:
        yield tuple(page)


class Registration:
    """Keeps one worker known to the router behind `channel`.

    Setting `news` tells the router of a change of load, caches or description before the next heartbeat is due, though
    not at once after the last: a busy worker has news all the time.
    """

    def __init__(self, channel: grpc.aio.Channel, reporter: Reporter, *, heartbeat_s: float, news: asyncio.Event) -> None:
        self._registry = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
        self._reporter = reporter
        self._wanted_s = heartbeat_s
        self._heartbeat_s = heartbeat_s
        self._news = news
        self._away = False

    async def run(self) -> None:
        """Register and send heartbeats until cancelled."""
        while True:
            info = self._reporter.info()
            try:
                await self._session(info)
            except grpc.aio.AioRpcError as error:
                self._note_absence(error)
            if self._reporter.info() == info:  # else there is news, which does not wait
                await self._pause()

    async def deregister(self) -> None:
        """Say goodbye. A router that is away needs no goodbye."""
        info = self._reporter.info()
        message = registry_pb2.DeregisterRequest(worker_id=info.worker_id, incarnation=info.incarnation)
        try:
            await self._registry.Deregister(message, timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            log.info("the router did not take the goodbye: %s", error.details())

    async def _session(self, info: WorkerInfo) -> None:
        """From one registration to the next, which is due when the router has forgotten or the description changed."""
        reply = await self._registry.Register(to_pb_worker_info(info), timeout=CALL_TIMEOUT_S)
        # The router may want to hear more often than the worker's settings say, never less often.
        self._heartbeat_s = min(self._wanted_s, reply.heartbeat_s) if reply.heartbeat_s > 0 else self._wanted_s
        log.info("registered with the router as %s %s at %s", info.role, info.worker_id, info.address)
        self._away = False
        await self._send_snapshot(info)
        while self._reporter.info() == info:
            answer = await self._registry.Heartbeat(self._heartbeat(info), timeout=CALL_TIMEOUT_S)
            if not answer.known:
                return
            if answer.resync_cache:
                await self._send_snapshot(info)
            await self._pause()

    def _heartbeat(self, info: WorkerInfo) -> registry_pb2.HeartbeatRequest:
        return registry_pb2.HeartbeatRequest(
            worker_id=info.worker_id,
            incarnation=info.incarnation,
            load=to_pb_worker_load(self._reporter.load()),
            cache_events=[to_pb_cache_event(event) for event in self._reporter.take_cache_events()],
            links=[to_pb_link_view(link) for link in self._reporter.links()],
        )

    async def _send_snapshot(self, info: WorkerInfo) -> None:
        self._reporter.take_cache_events()  # the snapshot says it all; what happens from here on has higher numbers
        next_seq, contents = self._reporter.cache_snapshot()
        cut = list(pages(contents, PAGE_BLOCKS)) or [()]
        for number, page in enumerate(cut):
            message = registry_pb2.CacheSnapshot(
                worker_id=info.worker_id,
                incarnation=info.incarnation,
                next_seq=next_seq,
                contents=[to_pb_cache_event(event) for event in page],
                continued=number > 0,
                unfinished=number < len(cut) - 1,
            )
            await self._registry.PutCacheSnapshot(message, timeout=CALL_TIMEOUT_S)

    async def _pause(self) -> None:
        """Until the next heartbeat is due or there is news."""
        soonest_s = min(LONGEST_S, self._heartbeat_s * QUICKEST)
        await asyncio.sleep(soonest_s)
        try:
            async with asyncio.timeout(self._heartbeat_s - soonest_s):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()

    def _note_absence(self, error: grpc.aio.AioRpcError) -> None:
        if not self._away:
            what = "cannot be reached" if error.code() is grpc.StatusCode.UNAVAILABLE else "does not register this worker"
            log.warning("the router %s (%s); serving on and trying again", what, error.details())
        self._away = True
