"""What one decode worker knows of the links it receives over: the transport's own books, filled from fluid flows.

Sending and receiving sessions are not run: they would move every chunk of every transfer as an event, a thousand for a
long prompt, to find what sharing a rate gives in one. What the policy sees is what the transport's `Path` makes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kv_transport.links import Path
from kv_transport.session.lane_tuner import LaneTuner
from prfaas.sim.kernel import Kernel
from prfaas.sim.links import Flow, SimLink
from prfaas.types import LinkView, SiteId


@dataclass(slots=True)
class _Watch:
    """A transfer under way."""

    path: Path
    on_stall: Callable[[], None]
    moved_s: float
    landed_bytes: float = 0.0
    queued_bytes: int = 0


class Paths:
    """One receiver. `look` must be called several times a second while transfers are under way."""

    def __init__(self, site: SiteId, kernel: Kernel, *, progress_timeout_s: float) -> None:
        self._site, self._kernel, self._timeout_s = site, kernel, progress_timeout_s
        self._paths: dict[SiteId, Path] = {}
        self._watches: dict[Flow, _Watch] = {}

    def began(self, src: SiteId, link: SimLink, flow: Flow, on_stall: Callable[[], None]) -> None:
        """`on_stall` runs, once, when bytes have been waiting for `progress_timeout_s` without one of them moving."""
        now_s = self._kernel.now_s()
        path = self._paths.get(src)
        if path is None:
            tuner = LaneTuner(max_lanes=link.lanes, fixed=link.lanes)
            path = self._paths[src] = Path(src, self._site, tuner, link.nominal_bytes_per_s)
        path.active += 1
        path.round_trip(link.rtt_s, now_s)
        self._watches[flow] = _Watch(path, on_stall, now_s)

    def ended(self, flow: Flow) -> None:
        """The transfer landed or was given up. Its speed teaches the path nothing: capacities are configured here."""
        watch = self._watches.pop(flow)
        self._read(flow, watch)
        watch.path.active -= 1
        watch.path.queued(-watch.queued_bytes)

    @property
    def busy(self) -> bool:
        """Whether transfers are under way."""
        return bool(self._watches)

    def look(self) -> None:
        """Read every transfer's progress, and give up those that stand still."""
        now_s, stalled = self._kernel.now_s(), []
        for flow, watch in self._watches.items():
            self._read(flow, watch)
            if watch.queued_bytes and now_s - watch.moved_s > self._timeout_s:
                stalled.append(watch)
        for watch in stalled:
            watch.on_stall()

    def views(self) -> tuple[LinkView, ...]:
        return tuple(path.view(self._kernel.now_s()) for path in self._paths.values())

    def _read(self, flow: Flow, watch: _Watch) -> None:
        now_s = self._kernel.now_s()
        moved = flow.carried_bytes - watch.landed_bytes
        if moved >= 1 or not watch.queued_bytes:
            watch.moved_s = now_s
        if moved >= 1:
            watch.path.landed(round(moved), now_s)
            watch.landed_bytes += moved
        queued = round(flow.pending_bytes)
        watch.path.queued(queued - watch.queued_bytes)
        watch.queued_bytes = queued
