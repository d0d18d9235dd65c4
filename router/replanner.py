"""Runs the long loop: once a minute the planner solves again on what was measured, and the threshold follows.

Contains no policy. It recommends another split of the decode site's nodes and does not convert them: that takes workers
out of service, which is the operator's or the pool's to order.
"""

from __future__ import annotations

import asyncio
import math

from prfaas import metrics as m
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.types import Role, SiteId
from router.fleet import Fleet
from router.policy import scorers
from router.policy.costs import Kind
from router.policy.long_loop import FarSite, NearSite, Observed, Replan, replan
from router.policy.short_loop import ShortLoop
from router.policy.view import FleetView, Link, WorkerView

_log = logger(__name__)

PERIOD_S = 60.0


class Replanner:
    """Owns the task; shares the short loop with the tuner, whose planned threshold it sets."""

    def __init__(self, *, fleet: Fleet, loop: ShortLoop, metrics: MetricSet) -> None:
        self._fleet = fleet
        self._loop = loop
        self._metrics = metrics

    async def run(self) -> None:
        """Plan again every minute until cancelled. Solving runs on a thread: it takes tens of milliseconds."""
        while True:
            await asyncio.sleep(PERIOD_S)
            try:
                await self.round()
            except Exception:  # noqa: BLE001 -- the loop must outlive one bad round
                _log.exception("planning failed; the last plan stays in force")

    async def round(self) -> Replan | None:
        """One look and, where it pays, one change of the planned threshold."""
        inputs = measure(self._fleet)
        if inputs is None:
            return None
        plan = await asyncio.to_thread(replan, *inputs, self._loop.planned_tokens)
        if plan is None:
            return None
        self._metrics.set(m.PLANNED_PREFILL, plan.best.num_prefill)
        if plan.change_threshold:
            _log.info("planned threshold %d -> %d tokens", self._loop.planned_tokens, plan.threshold_tokens)
            self._loop.plan(plan.threshold_tokens)
        if plan.change_split:
            split = plan.best.num_prefill, plan.best.num_decode
            _log.warning("%d prefilling and %d decoding nodes would serve %.0f %% more", *split, plan.split_gain * 100)
        return plan


def measure(fleet: Fleet) -> tuple[tuple[FarSite, ...], NearSite, Observed] | None:
    """The planner's inputs from the fleet's measurements; None while some are missing, or for several decode sites."""
    view = fleet.view()
    sites = {worker.site for worker in view.decode}
    if len(sites) != 1:
        return None
    near = _near(sites.pop(), view)
    if near is None:
        return None
    far = (_far(site, workers, view, SiteId(near.name)) for site, workers in view.prefill.items() if site != near.name)
    lengths, mean_output_tokens = fleet.recent_requests()
    cache = view.decode[0].cache
    at_10k, at_20k = cache.request_bytes(10_000), cache.request_bytes(20_000)
    per_token = (at_20k - at_10k) / 10_000
    seen = Observed(lengths, mean_output_tokens, max(0.0, at_10k - 10_000 * per_token), per_token)
    return tuple(site for site in far if site is not None), near, seen


def _near(site: SiteId, view: FleetView) -> NearSite | None:
    local = [w for w in view.prefill.get(site, ()) if w.role is Role.PD_PREFILL]
    model = view.models.get(Kind(site, Role.PD_PREFILL)) or view.models.get(Kind(site, Role.DECODE))
    steps = [w.decode_step_s for w in view.decode if w.decode_step_s > 0]
    if model is None or not steps:
        return None
    batch = max(w.max_running for w in view.decode)
    return NearSite(site, len(local), len(view.decode), model, sum(steps) / len(steps), batch)


def _far(site: SiteId, workers: tuple[WorkerView, ...], view: FleetView, near: SiteId) -> FarSite | None:
    model = view.models.get(Kind(site, Role.PREFILL))
    link = view.links.get(Link(site, near))
    if model is None or Link(site, near) in view.tuning.folded:
        return None
    rate = scorers.link_rate(link) if link is not None else 0.0
    return FarSite(site, len(workers), model, rate or math.inf)
