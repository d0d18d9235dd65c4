"""One worker as the router and its operator see it: who it is, which doors are open, how busy it is.

The engine stays the same whatever the role: changing the role closes one door, waits, and opens the other. Doors are
what admits work; the engine itself is never closed to it, because a request that is inside may still need the engine
for its last rung, the inline prefill.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from kv_transport.api import PrefillTransport
from prfaas.engine.api import Engine
from prfaas.types import CacheEvent, CacheGroupInfo, LinkView, Role, WorkerInfo, WorkerLoad
from prfaas.worker.gate import Gate


class Node:
    """Implements `prfaas.worker.registration.Reporter`, and the changes that the control service asks for.

    `info` is the worker at start; its role says which door is open first. `changed` is called whenever the router
    should hear of a change, with True when the description itself changed.
    """

    def __init__(self, info: WorkerInfo, engine: Engine, transport: PrefillTransport, changed: Callable[[bool], None]) -> None:
        self.prefill_gate = Gate("prefill")
        self.decode_gate = Gate("decode")
        self._info = info
        self._engine = engine
        self._transport = transport
        self._changed = changed
        self._draining = False
        self._changing = asyncio.Lock()
        self._gate(info.role).open()

    def _gate(self, role: Role) -> Gate:
        return self.prefill_gate if role.opens_prefill else self.decode_gate

    def info(self) -> WorkerInfo:
        return self._info

    def load(self) -> WorkerLoad:
        receiving = int(self._transport.counters()["active_transfers"])
        return replace(self._engine.load(), active_transfers=self.prefill_gate.inside + receiving, draining=self._draining)

    def links(self) -> tuple[LinkView, ...]:
        return self._transport.links()

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        return self._engine.take_cache_events()

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        return self._engine.cache_snapshot()

    def counters(self) -> Mapping[str, float]:
        """Engine and transport accounting, and the calls inside each door: all but the pools' totals, free and cached
        counts are zero on an idle worker."""
        doors = {"prefill_inside": float(self.prefill_gate.inside), "decode_inside": float(self.decode_gate.inside)}
        return {**self._engine.counters(), **self._transport.counters(), **doors}

    async def drain(self, timeout_s: float) -> int:
        """Close both doors and wait for those inside; returns how many are left after `timeout_s`. They go on."""
        async with self._changing:
            return await self._drain(timeout_s)

    async def _drain(self, timeout_s: float) -> int:
        self._draining = True
        self.prefill_gate.close()
        self.decode_gate.close()
        self._changed(False)
        left = await asyncio.gather(self.prefill_gate.wait_empty(timeout_s), self.decode_gate.wait_empty(timeout_s))
        return sum(left)

    async def set_role(self, role: Role, drain_timeout_s: float) -> int:
        """Drain, then open the door of `role`; opens a drained worker again too. Weights and cache stay.

        Returns how many calls were still inside after `drain_timeout_s`. They go on behind the closed door: the engine
        that serves them is the same.
        """
        async with self._changing:
            target = self._gate(role)
            if not target.is_open:
                unfinished = await self._drain_or_reopen(drain_timeout_s)
            else:
                unfinished = 0
            self._draining = False
            target.open()
            self._info = replace(self._info, role=role)
            self._changed(True)
            return unfinished

    async def _drain_or_reopen(self, timeout_s: float) -> int:
        """A change of role whose caller goes away in the middle is undone: nobody else would open a door again."""
        was_draining = self._draining
        try:
            return await self._drain(timeout_s)
        except asyncio.CancelledError:
            if not was_draining:
                self._draining = False
                self._gate(self._info.role).open()
                self._changed(False)
            raise


def cache_groups(engine: Engine) -> tuple[CacheGroupInfo, ...]:
    """The model's cache groups as the router needs them."""
    return tuple(
        CacheGroupInfo(g.name, g.kind, g.entry_bytes * len(g.layers), g.window_tokens) for g in engine.spec.cache.groups
    )
