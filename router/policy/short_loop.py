"""The short loop: seconds-scale reactions to what links do. Pure: observations and the time in, tuning out.

Queues need no loop: every decision sees them, and the threshold policy leans on them by itself. What a decision cannot see
is how much a link carries and how much will be offered to it. So the loop keeps a judgement of each link (`link_health`),
and solves for the smallest threshold at which the prompts of the last two minutes would have fitted through the links that are
in use: the floor. It moves only where the answer differs from it by more than noise, up fast and down slowly, and where no
link is short it is zero and the planned threshold stays in force as it is ("Prefill-as-a-Service", arXiv:2604.15039,
section 4; every number here is ours).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from prfaas.types import LinkView, SiteId
from router.policy.link_health import Fold, LinkHealth, LinkState, Outcomes, Sighting
from router.policy.view import Link, Tuning

WINDOW_S = 120.0  # of arrivals that the floor is solved for
MAX_ARRIVALS = 4096  # the latest of them, where there are more
MIN_WINDOW_S = 10.0  # a first arrival does not stand for a rate
USED_SHARE = 0.85  # of what the links can carry: waits explode near one (arXiv:2608.14967)
DEAD_BAND = 0.25  # of log(threshold): a floor this near the solution stays
RISE_S, FALL_S = 1.0, 3.0  # time constants of the floor


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that was decided on: its uncached tokens as the threshold counts them, and the bytes it would ship."""

    at_s: float
    uncached_tokens: int
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at one moment. `arrivals` are those since the last; `alive` are sites some worker of which was heard of
    lately."""

    links: Mapping[Link, LinkView]
    outcomes: Mapping[Link, Outcomes] = field(default_factory=dict)
    arrivals: Sequence[Arrival] = ()
    alive: frozenset[SiteId] = frozenset()


class ShortLoop:
    """Keeps the state between observations. One per router; the simulator drives the same class."""

    def __init__(self, planned_tokens: int, slo_s: float) -> None:
        self._planned = planned_tokens
        self._slo_s = slo_s
        self._floor = 0.0
        self._last_s: float | None = None
        self._health: dict[Link, LinkHealth] = {}
        self._arrivals: deque[Arrival] = deque()
        self._arrived_bytes = 0  # of all `_arrivals`

    def plan(self, planned_tokens: int) -> None:
        """Take a new planned threshold from the long loop."""
        self._planned = planned_tokens

    @property
    def planned_tokens(self) -> int:
        return self._planned

    def states(self) -> Mapping[Link, LinkState]:
        return {link: health.state for link, health in self._health.items()}

    def step(self, seen: Observation, now_s: float) -> Tuning:
        """Take an observation, answer with the tuning to use from now on."""
        elapsed_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s
        for link in {*seen.links, *seen.outcomes, *self._health}:
            sighting = Sighting(seen.links.get(link), seen.outcomes.get(link, Outcomes()), link.src in seen.alive)
            self._health[link] = self._health.get(link, LinkHealth()).after(sighting, now_s, self._slo_s)
        self._remember(seen.arrivals, now_s)
        healths = [self._health[link] for link in seen.links]
        if any(h.in_use for h in healths):
            self._move(self._solve(seen.links, now_s), elapsed_s)
        elif all(h.fold is Fold.BROKEN for h in healths):
            self._floor = 0.0  # what comes back from an outage is taken to carry everything until it shows otherwise
        floor = round(self._floor)
        return Tuning(
            threshold_tokens=max(self._planned, floor),
            scarce=frozenset(link for link, h in self._health.items() if h.state is not LinkState.OPEN),
            folded=frozenset(link for link, h in self._health.items() if not h.in_use),
            floor_tokens=floor,
        )

    def _remember(self, arrivals: Sequence[Arrival], now_s: float) -> None:
        self._arrivals.extend(arrivals)
        self._arrived_bytes += sum(arrival.kv_bytes for arrival in arrivals)
        while self._arrivals and (self._arrivals[0].at_s < now_s - WINDOW_S or len(self._arrivals) > MAX_ARRIVALS):
            self._arrived_bytes -= self._arrivals.popleft().kv_bytes

    def _solve(self, links: Mapping[Link, LinkView], now_s: float) -> int:
        """The smallest threshold whose longer prompts fit through the links in use; 0 where all do or nothing is known."""
        budget = 0.0
        for link, view in links.items():
            health = self._health[link]
            if not health.in_use:
                continue
            rate = health.rate(view)
            if rate is None:
                return 0
            budget += rate * USED_SHARE
        if not self._arrivals:
            return 0
        left = budget * max(MIN_WINDOW_S, now_s - self._arrivals[0].at_s)
        if self._arrived_bytes <= left:
            return 0
        for arrival in sorted(self._arrivals, key=lambda a: a.uncached_tokens, reverse=True):
            left -= arrival.kv_bytes
            if left < 0:
                break
        return arrival.uncached_tokens

    def _move(self, target: int, elapsed_s: float) -> None:
        """Towards the solution in log(t). Below the plan a floor changes nothing, so it starts and ends there."""
        base = max(1.0, float(self._planned))
        here, there = math.log(max(self._floor, base)), math.log(max(target, base))
        difference = there - here
        if there > math.log(base) and abs(difference) <= DEAD_BAND:
            return
        share = 1 - math.exp(-elapsed_s / (RISE_S if difference > 0 else FALL_S))
        moved = math.exp(here + difference * share)
        self._floor = moved if moved > base * 1.01 else 0.0
