"""Whether the fleet should be given more work now, seen from the door. Pure; knows nothing of who waits there."""

from __future__ import annotations

from prfaas.types import SiteId
from router.policy import scorers
from router.policy.decide import SLACK_SLOS
from router.policy.view import FleetView, Link, WorkerView


def has_room(view: FleetView, dispatched: int, per_slot: float, max_backlog_s: float, now_s: float) -> bool:
    """Whether the fleet should be given another request now, or is better left to work off what it has.

    There is room while fewer than `per_slot` requests per decode slot are under way, and the least backed-up worker that may
    prefill is less than `max_backlog_s` behind; over a folded link nobody may. A fleet without decode workers has room:
    deciding says what is wrong.
    """
    oldest_s = now_s - view.member_timeout_s
    seats, some = 0, False
    for worker in view.decode:
        if _alive(worker, oldest_s):
            some, seats = True, seats + worker.max_running
            if dispatched < per_slot * seats:
                break
    else:
        return not some
    near = [_shortest(site, view, oldest_s) for site in view.prefill if _near(site, view, oldest_s)]
    queues = [worker.queued_s for worker in near if worker is not None]
    queues = queues or [worker.queued_s for worker in view.decode if _alive(worker, oldest_s)]
    return min(queues) < max_backlog_s


def has_slack(view: FleetView, slo_s: float, now_s: float) -> bool:
    """Whether there is capacity that nobody in time waits for: a worker that may prefill with next to nothing before it and,
    where it is in another site, a link with next to nothing on it."""
    oldest_s, most_s = now_s - view.member_timeout_s, SLACK_SLOS * slo_s
    targets = {worker.site for worker in view.decode if _alive(worker, oldest_s)}
    for site in view.prefill:
        worker = _shortest(site, view, oldest_s)
        if worker is not None and worker.queued_s <= most_s and any(_free(Link(site, s), view, most_s) for s in targets):
            return True
    return not view.prefill and any(w.queued_s <= most_s for w in view.decode if _alive(w, oldest_s))


def _free(way: Link, view: FleetView, most_s: float) -> bool:
    """Whether next to nothing waits on the way; within a site nothing does."""
    if way.src == way.dst:
        return True
    return way not in view.tuning.folded and scorers.stream_s(view.links.get(way), 0, view.promised_bytes.get(way, 0)) <= most_s


def _near(site: SiteId, view: FleetView, oldest_s: float) -> bool:
    """Whether some decode worker can be reached from a site."""
    folded = view.tuning.folded
    return not folded or any(
        worker.site == site or Link(site, worker.site) not in folded for worker in view.decode if _alive(worker, oldest_s)
    )


def _shortest(site: SiteId, view: FleetView, oldest_s: float) -> WorkerView | None:
    """The site's worker with the shortest queue of those that may prefill."""
    return next((worker for worker in view.prefill[site] if _alive(worker, oldest_s)), None)


def _alive(worker: WorkerView, oldest_s: float) -> bool:
    return worker.seen_s >= oldest_s and not (worker.draining or worker.suspect)
