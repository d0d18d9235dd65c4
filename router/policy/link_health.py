"""What one link can carry now, and whether to use it. Pure: sightings of the link and the time in, a judgement out.

Two troubles look alike from afar and are kept apart. A link that is *broken* lets nothing through: bytes wait in silence,
or transfers fail one after the other. It is folded, and probed after a hold that grows with each relapse, but only while
somebody at its far end gives a sign of life and no bytes wait in silence. A probe is whatever is sent over it then; the link
stays folded until something comes through, so that its state does not flap in a long outage. A link that is *full* works,
and carries less than it is offered: how much it carries is then visible, is remembered as its limit, and forgotten by and by
in calm. It is folded only where the bytes on it already would make the next prompt miss the objective, and open again as
soon as they are through. Every state needs its signal for some time to be entered and calm for longer to be left, so that no
state follows noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from prfaas.types import LinkView
from router.policy import scorers

ENTER_S = 1.0  # a signal this old is believed
CALM_S = 3.0  # calm this long ends scarcity, and lets a limit grow
FULL_SHARE, CALM_SHARE = 0.9, 0.7  # utilisation of what it carries that is scarce, and that is calm again
EGRESS_S = 5.0  # window of the mean egress
BACKLOG_S, CALM_BACKLOG_S = 1.0, 0.25
LOSSY, CALM_LOSS = 0.02, 0.01  # lost share of packets
FAILURES = 3  # failed transfers without a success between them that fold a link at once
FIRST_HOLD_S, MAX_HOLD_S = 2.0, 5.0  # the longest hold is how long a mended link may stay unused
RELAPSE_S = 30.0  # breaking again within this long doubles the hold
LEARN_S = 1.0  # how fast the limit follows what a backed-up link carries
GROWTH_PER_S = 0.04  # of log(limit) in calm: offering more shows whether more is carried
MAX_PATIENCE_S = 24.0  # the longest calm that is waited for before a limit grows, after it has proved true
UNLIMITED_SHARE = 4.0  # a limit this many times what is carried is no limit, where the capacity is unknown


class LinkState(StrEnum):
    OPEN = "open"
    SCARCE = "scarce"
    FOLDED = "folded"


class Fold(StrEnum):
    """Why a link is folded."""

    BROKEN = "broken"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Transfers over one link since the last observation, and the bytes of those that landed."""

    landed: int = 0
    failed: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at a link. `view` is None where no receiver reports it; `alive`: a worker at its far end was heard of."""

    view: LinkView | None
    outcomes: Outcomes = Outcomes()
    alive: bool = True


@dataclass(frozen=True, slots=True)
class LinkHealth:
    """What is remembered of one link. `limit` is in bytes/s; None: nothing has shown one."""

    state: LinkState = LinkState.OPEN
    fold: Fold | None = None
    limit: float | None = None
    trouble_s: float | None = None  # since when it seems to be broken or full
    signal_s: float | None = None  # since when the other one of open and scarce is indicated
    backed_up_s: float | None = None  # since when bytes wait
    calm_s: float | None = None  # since when none do
    patience_s: float = CALM_S  # calm to wait for before the limit grows; doubles when it was reached again
    grown: bool = False  # the limit has grown since it was last measured
    failures: int = 0  # in a row
    folded_s: float = -math.inf  # when it was last folded as broken
    hold_s: float = FIRST_HOLD_S
    probing: bool = False  # folded, and tried nevertheless: nothing has come through yet
    egress_bytes_per_s: float = 0.0  # mean over the last EGRESS_S or so, as landed transfers show it
    seen_s: float | None = None

    def after(self, seen: Sighting, now_s: float, slo_s: float) -> LinkHealth:
        """The health after one more look."""
        elapsed_s = 0.0 if self.seen_s is None else max(0.0, now_s - self.seen_s)
        health = replace(self, seen_s=now_s, egress_bytes_per_s=self._egress(seen.outcomes.sent_bytes, elapsed_s))
        health = replace(health, failures=0 if seen.outcomes.landed else self.failures + seen.outcomes.failed)
        if seen.view is not None:
            health = health._measured(seen.view, now_s, elapsed_s)
        if health.state is LinkState.FOLDED:
            return health._probed(seen, now_s) if health.probing else health._unfolded(seen, now_s)
        if health.failures >= FAILURES:
            return health._broken(now_s)
        if seen.view is None:
            return replace(health, trouble_s=None, signal_s=None)
        fold = _trouble(seen.view, slo_s)
        if fold is None:
            calm = replace(health, trouble_s=None)
            return calm._weighed(seen.view, now_s) if seen.alive else calm  # calm because nobody is there says nothing
        since_s = now_s if health.trouble_s is None else health.trouble_s
        if now_s - since_s < ENTER_S:
            return replace(health, trouble_s=since_s)
        return health._broken(now_s) if fold is Fold.BROKEN else health._folded(fold)

    @property
    def in_use(self) -> bool:
        """Whether anything is sent over the link."""
        return self.state is not LinkState.FOLDED or self.probing

    def rate(self, view: LinkView) -> float | None:
        """Bytes/s the link can be offered: its limit, else its capacity, else None for unknown."""
        known = view.capacity_bytes_per_s if view.capacity_bytes_per_s > 0 else math.inf
        rate = known if self.limit is None else min(known, self.limit)
        return None if math.isinf(rate) else rate

    def _egress(self, sent_bytes: int, elapsed_s: float) -> float:
        """Let the mean forget by the time that has passed and take in what was sent meanwhile."""
        if elapsed_s <= 0:
            return self.egress_bytes_per_s
        keep = math.exp(-elapsed_s / EGRESS_S)
        return self.egress_bytes_per_s * keep + sent_bytes / elapsed_s * (1 - keep)

    def _measured(self, view: LinkView, now_s: float, elapsed_s: float) -> LinkHealth:
        """Learn the limit while bytes wait and move; after enough calm let it grow, until it is none."""
        if _backlog_s(view) <= CALM_BACKLOG_S:
            calm = replace(self, backed_up_s=None, calm_s=now_s if self.calm_s is None else self.calm_s)
            return calm._grown(view, now_s, elapsed_s)
        since_s = now_s if self.backed_up_s is None else self.backed_up_s
        health = replace(self, backed_up_s=since_s, calm_s=None)
        if now_s - since_s < ENTER_S or math.isinf(_backlog_s(view)):
            return health
        seen = view.goodput_bytes_per_s
        if self.limit is None or self.grown:
            patience_s = min(MAX_PATIENCE_S, self.patience_s * 2) if self.grown else self.patience_s
            return replace(health, limit=seen, grown=False, patience_s=patience_s)
        keep = math.exp(-elapsed_s / LEARN_S)
        return replace(health, limit=self.limit * keep + seen * (1 - keep))

    def _grown(self, view: LinkView, now_s: float, elapsed_s: float) -> LinkHealth:
        if self.limit is None or self.calm_s is None or now_s - self.calm_s < self.patience_s:
            return self
        limit = self.limit * math.exp(GROWTH_PER_S * elapsed_s)
        top = view.capacity_bytes_per_s or UNLIMITED_SHARE * view.goodput_bytes_per_s
        if limit >= top:
            return replace(self, limit=None, grown=False, patience_s=CALM_S)
        return replace(self, limit=limit, grown=True)

    def _weighed(self, view: LinkView, now_s: float) -> LinkHealth:
        """Between open and scarce."""
        share = self.egress_bytes_per_s / (self.rate(view) or math.inf)
        backlog_s, is_open = _backlog_s(view), self.state is LinkState.OPEN
        if is_open:
            indicated = share >= FULL_SHARE or backlog_s >= BACKLOG_S or view.loss_ratio >= LOSSY
        else:
            calm = share <= CALM_SHARE and backlog_s <= CALM_BACKLOG_S and view.loss_ratio <= CALM_LOSS
            indicated = calm and self.limit is None
        if not indicated:
            return replace(self, signal_s=None)
        since_s = now_s if self.signal_s is None else self.signal_s
        if now_s - since_s < (ENTER_S if is_open else CALM_S):
            return replace(self, signal_s=since_s)
        return replace(self, state=LinkState.SCARCE if is_open else LinkState.OPEN, signal_s=None)

    def _folded(self, fold: Fold) -> LinkHealth:
        return replace(self, state=LinkState.FOLDED, fold=fold, trouble_s=None, signal_s=None)

    def _broken(self, now_s: float) -> LinkHealth:
        relapse = now_s - self.folded_s <= self.hold_s + RELAPSE_S
        hold_s = min(MAX_HOLD_S, self.hold_s * 2) if relapse else FIRST_HOLD_S
        return replace(self._folded(Fold.BROKEN), failures=0, folded_s=now_s, hold_s=hold_s, probing=False)

    def _unfolded(self, seen: Sighting, now_s: float) -> LinkHealth:
        """A full link opens when its bytes are through; a broken one is probed after the hold, if anybody is there and
        nothing waits in silence. What it carried before it broke says nothing then."""
        backlog_s = _backlog_s(seen.view) if seen.view is not None else 0.0
        if self.fold is Fold.FULL:
            return self if backlog_s > BACKLOG_S else self._opened()
        if now_s - self.folded_s < self.hold_s or not seen.alive or math.isinf(backlog_s):
            return self
        return replace(self, probing=True, failures=0, limit=None)

    def _probed(self, seen: Sighting, now_s: float) -> LinkHealth:
        """Open as soon as anything comes through, broken anew when it fails or stands still."""
        if seen.outcomes.landed or (seen.view is not None and _moves(seen.view)):
            return self._opened()
        still = seen.view is not None and math.isinf(_backlog_s(seen.view))
        since_s = self.trouble_s if self.trouble_s is not None else now_s
        if self.failures >= FAILURES or (still and now_s - since_s >= ENTER_S):
            return self._broken(now_s)
        return replace(self, trouble_s=since_s if still else None)

    def _opened(self) -> LinkHealth:
        return replace(self, state=LinkState.SCARCE, fold=None, failures=0, trouble_s=None, probing=False)


def _backlog_s(view: LinkView) -> float:
    """Seconds until what waits is through at the speed at which it moves, infinite in silence. Bytes only wait where the
    link is the bottleneck, so this needs no belief about its capacity."""
    if view.queued_bytes <= 0 or view.active_transfers <= 0:
        return 0.0
    if view.age_s > scorers.SILENT_S or view.goodput_bytes_per_s <= 0:
        return math.inf
    return view.queued_bytes / view.goodput_bytes_per_s


def _moves(view: LinkView) -> bool:
    return view.active_transfers > 0 and view.goodput_bytes_per_s > 0 and view.age_s <= scorers.SILENT_S


def _trouble(view: LinkView, slo_s: float) -> Fold | None:
    backlog_s = _backlog_s(view)
    if backlog_s <= slo_s:
        return None
    return Fold.BROKEN if math.isinf(backlog_s) else Fold.FULL
