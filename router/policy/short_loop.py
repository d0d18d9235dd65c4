"""The short loop: seconds-scale reactions to what links and queues do. Pure: observations and the time in, tuning out.

Two things are set ("Prefill-as-a-Service", arXiv:2604.15039, section 4; every number here is ours).

Links, each by itself. A link is scarce when it is nearly full, backed up or losing packets, and folded when nothing
comes through, transfers keep failing, or its backlog alone would miss the objective: then the decode sites serve alone.
Entering a state needs the signal for `ENTER_S`; leaving it needs calm for longer, and a folded link is tried again
after a hold that doubles with each relapse. Different thresholds in and out, and different times, keep it from flapping.

The threshold. The paper's optimum equalises the utilisation of remote and local prefill, hence their backlogs. The loop
moves log(t) in proportion to the difference of the two, measured in objectives; inside a dead band it drifts back to
the planned value. The step is limited, so one burst cannot swing it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from prfaas.types import LinkView
from router.policy import scorers
from router.policy.view import Link, Tuning

ENTER_S = 1.0  # a signal this old is believed
CALM_S = 5.0  # calm this long ends scarcity
FULL_SHARE, CALM_SHARE = 0.8, 0.6  # utilisation that is scarce, and that is calm again
EGRESS_S = 5.0  # window of the mean egress
BACKLOG_S, CALM_BACKLOG_S = 1.0, 0.25
LOSSY, CALM_LOSS = 0.02, 0.01  # lost share of packets
FAILURES = 3  # failed transfers without a success between them that fold a link at once
FIRST_HOLD_S, MAX_HOLD_S = 2.0, 8.0  # the longest hold is how long a mended link may stay unused
RELAPSE_S = 30.0  # folding again within this long doubles the hold
GAIN_PER_S = 0.5  # change of log(t) per second and objective of backlog difference
MAX_STEP_PER_S = 0.4  # t moves by at most half again per second
DEAD_BAND = 0.2  # backlog differences below this share of the objective are noise
RETURN_PER_S = 0.05  # share of the way back to the planned threshold per second of balance
RANGE = 8.0  # t stays within [planned / RANGE, planned * RANGE]


class LinkState(StrEnum):
    OPEN = "open"
    SCARCE = "scarce"
    FOLDED = "folded"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Transfers over one link since the last observation, and the bytes of those that landed."""

    landed: int = 0
    failed: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen at one moment. Backlogs are mean seconds of queued prefill per worker; None where there is none."""

    links: Mapping[Link, LinkView]
    outcomes: Mapping[Link, Outcomes] = field(default_factory=dict)
    remote_backlog_s: float | None = None
    local_backlog_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Health:
    state: LinkState = LinkState.OPEN
    signal_s: float | None = None  # since when a worse state is indicated
    calm_s: float | None = None  # since when a better one is
    failures: int = 0  # in a row
    folded_s: float = -math.inf  # when it was last folded
    hold_s: float = FIRST_HOLD_S
    egress_bytes_per_s: float = 0.0  # mean over the last EGRESS_S or so, as landed transfers show it

    def utilisation(self, view: LinkView) -> float:
        """Share of the link's capacity that is used; 0 where the capacity is unknown."""
        return self.egress_bytes_per_s / view.capacity_bytes_per_s if view.capacity_bytes_per_s > 0 else 0.0


class ShortLoop:
    """Keeps the state between observations. One per router; the simulator drives the same class."""

    def __init__(self, planned_tokens: int, slo_s: float) -> None:
        self._planned = planned_tokens
        self._slo_s = slo_s
        self._log_factor = 0.0  # log of threshold / planned
        self._last_s: float | None = None
        self._health: dict[Link, _Health] = {}

    def plan(self, planned_tokens: int) -> None:
        """Take a new planned threshold from the long loop; the present deviation from it is kept."""
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
            outcomes = seen.outcomes.get(link, Outcomes())
            health = _count_egress(self._health.get(link, _Health()), outcomes.sent_bytes, elapsed_s)
            self._health[link] = self._judge(health, seen.links.get(link), outcomes, now_s)
        self._move(seen, elapsed_s)
        return Tuning(
            threshold_tokens=round(self._planned * math.exp(self._log_factor)),
            scarce=frozenset(link for link, h in self._health.items() if h.state is not LinkState.OPEN),
            folded=frozenset(link for link, h in self._health.items() if h.state is LinkState.FOLDED),
        )

    def _judge(self, health: _Health, view: LinkView | None, outcomes: Outcomes, now_s: float) -> _Health:
        failures = 0 if outcomes.landed else health.failures + outcomes.failed
        health = replace(health, failures=failures)
        if health.state is LinkState.FOLDED:
            return self._try_again(health, now_s)
        if failures >= FAILURES:
            return self._fold(health, now_s)
        if view is None:
            return replace(health, signal_s=None, calm_s=None)
        if self._dead(view):
            since_s = now_s if health.signal_s is None else health.signal_s
            health = replace(health, signal_s=since_s, calm_s=None)
            return self._fold(health, now_s) if now_s - since_s >= ENTER_S else health
        return self._scarcity(health, view, now_s)

    def _scarcity(self, health: _Health, view: LinkView, now_s: float) -> _Health:
        if health.state is LinkState.OPEN:
            if not _strained(view, health.utilisation(view)):
                return replace(health, signal_s=None)
            since_s = now_s if health.signal_s is None else health.signal_s
            if now_s - since_s >= ENTER_S:
                return replace(health, state=LinkState.SCARCE, signal_s=None, calm_s=None)
            return replace(health, signal_s=since_s)
        if not _calm(view, health.utilisation(view)):
            return replace(health, signal_s=None, calm_s=None)
        since_s = now_s if health.calm_s is None else health.calm_s
        if now_s - since_s >= CALM_S:
            return replace(health, state=LinkState.OPEN, signal_s=None, calm_s=None)
        return replace(health, signal_s=None, calm_s=since_s)

    def _dead(self, view: LinkView) -> bool:
        """Bytes are waiting and would wait longer than the objective allows."""
        return view.queued_bytes > 0 and view.active_transfers > 0 and scorers.backlog_s(view) > self._slo_s

    def _fold(self, health: _Health, now_s: float) -> _Health:
        relapse = now_s - health.folded_s <= health.hold_s + RELAPSE_S
        hold_s = min(MAX_HOLD_S, health.hold_s * 2) if relapse else FIRST_HOLD_S
        return replace(health, state=LinkState.FOLDED, signal_s=None, calm_s=None, failures=0, folded_s=now_s, hold_s=hold_s)

    def _try_again(self, health: _Health, now_s: float) -> _Health:
        """After the hold the link is tried, as a scarce one: only prompts that are long by the near caches alone."""
        if now_s - health.folded_s < health.hold_s:
            return health
        return replace(health, state=LinkState.SCARCE, failures=0, signal_s=None, calm_s=None)

    def _move(self, seen: Observation, elapsed_s: float) -> None:
        """Move the threshold up when remote prefill is the more backed-up side, down when local is."""
        if seen.remote_backlog_s is None or seen.local_backlog_s is None:
            difference = 0.0
        else:
            wire_s = max((scorers.backlog_s(v) for link, v in seen.links.items() if self._usable(link)), default=0.0)
            remote_s = max(seen.remote_backlog_s, min(wire_s, 2 * self._slo_s))
            difference = (remote_s - seen.local_backlog_s) / self._slo_s
        if abs(difference) <= DEAD_BAND:
            self._log_factor *= max(0.0, 1 - RETURN_PER_S * elapsed_s)
            return
        limit = MAX_STEP_PER_S * elapsed_s
        step = max(-limit, min(limit, GAIN_PER_S * difference * elapsed_s))
        bound = math.log(RANGE)
        self._log_factor = max(-bound, min(bound, self._log_factor + step))

    def _usable(self, link: Link) -> bool:
        return self._health.get(link, _Health()).state is not LinkState.FOLDED


def _count_egress(health: _Health, sent_bytes: int, elapsed_s: float) -> _Health:
    """Let the mean forget by the time that has passed and take in what was sent meanwhile."""
    if elapsed_s <= 0:
        return health
    keep = math.exp(-elapsed_s / EGRESS_S)
    rate = sent_bytes / elapsed_s
    return replace(health, egress_bytes_per_s=health.egress_bytes_per_s * keep + rate * (1 - keep))


def _strained(view: LinkView, utilisation: float) -> bool:
    return utilisation >= FULL_SHARE or scorers.backlog_s(view) >= BACKLOG_S or view.loss_ratio >= LOSSY


def _calm(view: LinkView, utilisation: float) -> bool:
    return utilisation <= CALM_SHARE and scorers.backlog_s(view) <= CALM_BACKLOG_S and view.loss_ratio <= CALM_LOSS
