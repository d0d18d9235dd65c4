"""One worker as the router and its operator see it: who it is, which doors are open, how busy it is.

The engine stays the same whatever the role: changing the role closes one door, waits, and opens the other. Doors are
what admits work; the engine itself is never closed to it, because a request that is inside may still need the engine
for its last rung, the inline prefill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from kv_transport.api import PrefillTransport
from prfaas.engine.api import Engine
from prfaas.types import CacheEvent, CacheGroupInfo, LinkView, Role, WorkerInfo, WorkerLoad
from prfaas.worker.gate import Gate


@dataclass(frozen=True, slots=True)
class Doors:
    """Both doors of a worker; its role says which one is open."""

    prefill: Gate
    decode: Gate

    def of(self, role: Role) -> Gate:
        return self.prefill if role.opens_prefill else self.decode


class Sender(Protocol):
    """The sending half of the transport."""

    def counters(self) -> Mapping[str, float]:
        """Accounting for leak audits, with at least active_transfers."""
        ...

    def links(self) -> tuple[LinkView, ...]:
        """The paths from here, as their sender sees them."""
        ...


class Node:
    """Implements `prfaas.worker.registration.Reporter`, and the changes that the control service asks for.

    `info` is the worker at start; its role says which door opens first. `news` is set whenever the router should hear
    of a change.
    """

    def __init__(
        self,
        info: WorkerInfo,
        doors: Doors,
        *,
        engine: Engine,
        transport: PrefillTransport,
        sender: Sender,
        news: asyncio.Event,
    ) -> None:
        self._info = info
        self._doors = doors
        self._engine = engine
        self._transport = transport
        self._sender = sender
        self._news = news
        self._draining = False
        self._changing = asyncio.Lock()
        doors.of(info.role).open()

    def info(self) -> WorkerInfo:
        return self._info

    def load(self) -> WorkerLoad:
        """The engine's load, with transfers in both directions and whether this worker is leaving."""
        transfers = self._transport.counters()["active_transfers"] + self._sender.counters()["active_transfers"]
        return replace(self._engine.load(), active_transfers=int(transfers), draining=self._draining)

    def links(self) -> tuple[LinkView, ...]:
        return (*self._transport.links(), *self._sender.links())

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        return self._engine.take_cache_events()

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        return self._engine.cache_snapshot()

    def counters(self) -> Mapping[str, float]:
        """The engine's accounting, the transport's with both directions added up, and the calls inside each door. On an
        idle worker all are zero but the pools' totals, free and cached counts, connections and what only ever rises."""
        received, sent = self._transport.counters(), self._sender.counters()
        transfers = {name: received.get(name, 0.0) + sent.get(name, 0.0) for name in {**received, **sent}}
        doors = {"prefill_inside": float(self._doors.prefill.inside), "decode_inside": float(self._doors.decode.inside)}
        return {**self._engine.counters(), **transfers, **doors}

    async def drain(self, timeout_s: float) -> int:
        """Close both doors and wait for those inside; returns how many are left after `timeout_s`. They go on."""
        async with self._changing:
            return await self._drain(timeout_s)

    async def _drain(self, timeout_s: float) -> int:
        self._draining = True
        self._doors.prefill.close()
        self._doors.decode.close()
        self._news.set()
        left = await asyncio.gather(self._doors.prefill.wait_empty(timeout_s), self._doors.decode.wait_empty(timeout_s))
        return sum(left)

    async def set_role(self, role: Role, drain_timeout_s: float) -> int:
        """Drain, then open the door of `role`; opens a drained worker again too. Weights and cache stay.

        Returns how many calls were still inside after `drain_timeout_s`. They go on behind the closed door: the engine
        that serves them is the same.
        """
        async with self._changing:
            target = self._doors.of(role)
            if not target.is_open:
                unfinished = await self._drain_or_reopen(drain_timeout_s)
            else:
                unfinished = 0
            self._draining = False
            target.open()
            self._info = replace(self._info, role=role)
            self._news.set()
            return unfinished

    async def _drain_or_reopen(self, timeout_s: float) -> int:
        """A change of role whose caller goes away in the middle is undone: nobody else would open a door again."""
        was_draining = self._draining
        try:
            return await self._drain(timeout_s)
        except asyncio.CancelledError:
            if not was_draining:
                self._draining = False
                self._doors.of(self._info.role).open()
                self._news.set()
            raise


def cache_groups(engine: Engine) -> tuple[CacheGroupInfo, ...]:
    """The model's cache groups as the router needs them."""
    return tuple(
        CacheGroupInfo(g.name, g.kind, g.entry_bytes * len(g.layers), g.window_tokens) for g in engine.spec.cache.groups
    )
