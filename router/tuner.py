"""Runs the short loop: shows it the fleet at every tick and puts its answer into force. Contains no policy."""

from __future__ import annotations

import asyncio

from prfaas import metrics as m
from prfaas.clock import Clock
from prfaas.log import logger
from prfaas.metrics import MetricSet
from router.fleet import Fleet
from router.policy.link_health import LinkState
from router.policy.short_loop import Observation, ShortLoop
from router.policy.view import Link

_log = logger(__name__)

TICK_S = 0.5  # as often as workers report


class Tuner:
    """Owns the loop's state and its task."""

    def __init__(self, *, fleet: Fleet, loop: ShortLoop, metrics: MetricSet, clock: Clock) -> None:
        self._fleet = fleet
        self._loop = loop
        self._metrics = metrics
        self._clock = clock
        self._states: dict[Link, LinkState] = {}

    def tick(self) -> None:
        """One observation, one tuning."""
        now_s = self._clock.now_s()
        self._fleet.tune(self._loop.step(observe(self._fleet, now_s), now_s))
        for link, state in self._loop.states().items():
            if self._states.get(link) is not state:
                _log.warning("link %s -> %s is %s", link.src, link.dst, state)
                self._states[link] = state
                for each in LinkState:
                    self._metrics.set(m.LINK_STATE, float(each is state), src=link.src, dst=link.dst, state=each.value)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.tick()
            except Exception:  # noqa: BLE001 -- the loop must outlive one bad round
                _log.exception("tuning failed; the last tuning stays in force")


def observe(fleet: Fleet, now_s: float) -> Observation:
    """The fleet as the short loop sees it: links, transfers and requests since the last look, and sites with a sign of life."""
    view = fleet.view()
    oldest_s = now_s - view.member_timeout_s
    alive = {site for site, workers in view.prefill.items() if any(w.seen_s >= oldest_s for w in workers)}
    return Observation(view.links, fleet.take_outcomes(), fleet.take_arrivals(), frozenset(alive))
