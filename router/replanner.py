"""Runs the long loop: every minute or so the planner solves again on what was measured, and the threshold follows.

Contains no policy. Where the operator allows it, a plan with another split of the decode site's nodes is handed on to the
converter; otherwise it is only said.
"""

from __future__ import annotations

import asyncio
import math

from prfaas import metrics as m
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.types import Role, SiteId
from router.converter import Converter
from router.fleet import Fleet
from router.policy import scorers
from router.policy.conversion import direction
from router.policy.costs import Kind
from router.policy.long_loop import FarSite, NearSite, Observed, Replan, replan
from router.policy.short_loop import ShortLoop
from router.policy.view import FleetView, Link, WorkerView

_log = logger(__name__)


class Replanner:
    """Owns the task; shares the short loop with the tuner, whose planned threshold it sets."""

    def __init__(
        self, *, fleet: Fleet, loop: ShortLoop, metrics: MetricSet, period_s: float, converter: Converter | None = None
    ) -> None:
        """converter: what carries out other splits; None leaves every node as it is."""
        self._fleet = fleet
        self._loop = loop
        self._period_s = period_s
        self._converter = converter
        self._metrics = metrics

    @property
    def converts(self) -> bool:
        """Whether plans change the roles of nodes, or only say what would serve more."""
        return self._converter is not None

    async def run(self) -> None:
        """Plan again every period until cancelled. Solving runs on a thread: it takes tens of milliseconds."""
        while True:
            await asyncio.sleep(self._period_s)
            try:
                await self.round()
            except Exception:  # noqa: BLE001 -- the loop must outlive one bad round
                _log.exception("planning failed; the last plan stays in force")

    async def round(self) -> Replan | None:
        """One look and, where it pays, one change of the planned threshold."""
        inputs = measure(self._fleet)
        if inputs is None:
            return None
        far, near, seen = inputs
        plan = await asyncio.to_thread(replan, far, near, seen, self._loop.planned_tokens)
        if plan is None:
            return None
        self._metrics.set(m.PLANNED_PREFILL, plan.best.num_prefill)
        if plan.change_threshold:
            _log.info("planned threshold %d -> %d tokens", self._loop.planned_tokens, plan.threshold_tokens)
            self._loop.plan(plan.threshold_tokens)
        wanted = None
        if plan.change_split:
            split = plan.best.num_prefill, plan.best.num_decode
            _log.info("%d prefilling and %d decoding nodes would serve %.0f %% more", *split, plan.split_gain * 100)
            wanted = direction(near.num_prefill, plan.best.num_prefill)
        if self._converter is not None:
            await self._converter.consider(SiteId(near.name), wanted)
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
    # Read off where states at a boundary travel along: shorter prompts, which leave them behind, are those that stay near.
    at_50k, at_100k = (cache.request_bytes(n) + cache.boundary_bytes(n) for n in (50_000, 100_000))
    per_token = (at_100k - at_50k) / 50_000
    seen = Observed(lengths, mean_output_tokens, max(0.0, at_50k - 50_000 * per_token), per_token)
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
