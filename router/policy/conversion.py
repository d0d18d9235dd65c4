"""Which node of a decode site changes its role, and when: one at a time, at a bounded rate, and never back and forth.

The long loop says how many nodes should prefill and how many decode. Its answer moves with the traffic, and a change of
role drains a node, so a change waits until two plans in a row ask for the same direction, until enough time has passed
since the last one, and, where it would undo the last one, for several times as long. Pure: time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.types import Role, SiteId, WorkerId
from router.policy.view import FleetView, WorkerView

AGREEING_PLANS = 2
REVERSAL_INTERVALS = 4  # what undoes the last change waits so many intervals


@dataclass(frozen=True, slots=True)
class Change:
    """Give this worker another role. Its weights and its cache stay."""

    worker_id: WorkerId
    address: str
    role: Role


@dataclass(frozen=True, slots=True)
class _Done:
    role: Role
    at_s: float


class ConversionRule:
    """Keeps what it has seen and ordered. One per router."""

    def __init__(self, interval_s: float) -> None:
        """interval_s: least time between two changes in the same direction."""
        self._interval_s = interval_s
        self._wanted: Role | None = None
        self._plans = 0  # in a row that want this
        self._last: _Done | None = None

    def step(self, site: SiteId, wanted: Role | None, view: FleetView, now_s: float) -> Change | None:
        """Take a plan's direction for a decode site (None: leave the split as it is); answer with a change that is due."""
        self._plans = self._plans + 1 if wanted is self._wanted else 1
        self._wanted = wanted
        if wanted is None or self._plans < AGREEING_PLANS or not self._rested(wanted, now_s):
            return None
        donor = _donor(site, wanted, view, now_s)
        if donor is None:
            return None
        self._last, self._plans = _Done(wanted, now_s), 0
        return Change(donor.worker_id, donor.address, wanted)

    def _rested(self, wanted: Role, now_s: float) -> bool:
        if self._last is None:
            return True
        intervals = 1 if wanted is self._last.role else REVERSAL_INTERVALS
        return now_s - self._last.at_s >= intervals * self._interval_s


def direction(num_prefill: int, planned_prefill: int) -> Role | None:
    """The role that a node should take, from how many nodes prefill and how many a plan would have prefill."""
    if planned_prefill == num_prefill:
        return None
    return Role.PD_PREFILL if planned_prefill > num_prefill else Role.DECODE


def _donor(site: SiteId, wanted: Role, view: FleetView, now_s: float) -> WorkerView | None:
    """The least busy worker of the other role, which drains soonest; None where only one of them works."""
    if wanted is Role.PD_PREFILL:
        others = [w for w in view.decode if w.site == site]
    else:
        others = [w for w in view.prefill.get(site, ()) if w.role is Role.PD_PREFILL]
    oldest_s = now_s - view.member_timeout_s
    able = [w for w in others if w.seen_s >= oldest_s and not (w.draining or w.suspect)]
    if len(able) < 2:
        return None
    return min(able, key=lambda w: (w.running, w.queued_s, w.worker_id))
