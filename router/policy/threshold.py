"""The paper's routing rule: a prompt goes to another site iff more than t of its tokens are uncached.

Source: "Prefill-as-a-Service" (arXiv:2604.15039), section 4, both bandwidth branches. On a scarce link each site's
cache is judged alone: l = l_total - l_pd. On a link with room the longest prefix anywhere counts: l = l_total -
max(l_prfaas, l_pd); if that is short and lies in the other site, its cache is copied across, which here means that
the other site "prefills" it: it ships the cached prefix and computes the rest.

The threshold in force leans on the queues of the moment: where a prompt of the planned length would land later from the
other site than from here, it is higher for this one prompt, and lower where it would land later from here. So an idle fleet
uses its faster chips for more, a loaded one is led to where both sides wait about as long, as they do at the paper's optimum,
and two pools become one where chance has filled one of them. The lean remembers nothing, hence cannot wander. It never goes
below what the links can carry. And the rule yields to the objective: a prompt that its own route would make late, and the
other would not, takes the other; one that both would make late is said to be late.

Beyond the paper: very short suffixes are appended on the decode worker itself, as is a suffix whose prefix only that
worker holds; and each branch names what happens where one kind of worker does not exist.
"""

from __future__ import annotations

import math

from prfaas.config import PolicySettings
from prfaas.types import Route
from router.policy.costs import Kind
from router.policy.decide import Pick, Rule, Verdict, conclude, force, leftover
from router.policy.options import Options, survey
from router.policy.view import FleetView, RequestView

LEAN_SLOS = 0.5  # a difference of the waits of this many objectives moves the threshold by a factor of e
MAX_LEAN = 8.0


class ThresholdPolicy:
    """Implements `Policy` with the paper's rule. The threshold itself comes with each view."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings

    def decide(self, request: RequestView, view: FleetView, now_s: float) -> Verdict:
        """Raises NoWorkerAvailable when no decode worker can take the request."""
        return self.rule(survey(request, view, now_s, self._settings.max_candidates), request, view)

    def rule(self, options: Options, request: RequestView, view: FleetView) -> Verdict:
        """The verdict on options that are known."""
        settings = self._settings
        threshold = lean(options, view, settings.ttft_slo_s) if settings.adaptive else view.tuning.threshold_tokens
        if settings.force_route is not None:
            return conclude(force(Route(settings.force_route), options), options, threshold, settings.max_candidates)
        pick, late = judge(options, request, threshold, settings.inline_tokens), False
        if settings.adaptive:
            spare_s = request.spare_s(settings.ttft_slo_s)
            found = leftover(options, settings.ttft_slo_s) if request.patient else None
            pick = found or in_time(pick, options, spare_s)
            late = is_late(pick, options, spare_s)
        return conclude(pick, options, threshold, settings.max_candidates, late=late)


def lean(options: Options, view: FleetView, slo_s: float) -> int:
    """The threshold for one prompt: moved towards the side where a prompt of the planned length would land sooner, within
    [t / MAX_LEAN, t * MAX_LEAN]. Computing counts up to the objective: beyond it a few per cent of a fit are seconds."""
    tuning = view.tuning
    if not options.local or not options.remote:
        return tuning.threshold_tokens
    near, far = options.local[0], options.remote[0]
    models = [view.models.get(Kind(p.worker.site, p.worker.role)) for p in (near, far)]
    known = [m.seconds(tuning.threshold_tokens) for m in models if m is not None]
    near_s, far_s = (min(slo_s, s) for s in known) if len(known) == 2 else (0.0, 0.0)
    longer_s = far.wait_s + far_s - near.wait_s - near_s
    bound = math.log(MAX_LEAN)
    factor = math.exp(max(-bound, min(bound, longer_s / (LEAN_SLOS * slo_s))))
    return max(tuning.floor_tokens, round(tuning.threshold_tokens * factor))


def is_late(pick: Pick, options: Options, spare_s: float) -> bool:
    """Whether the pick is forecast to take longer than it may. What nobody has measured is not called late."""
    return dict(options.forecasts).get(pick.route, 0.0) > spare_s


def in_time(pick: Pick, options: Options, spare_s: float) -> Pick:
    """The pick, or, where it would miss the objective and the other site's or this site's workers would not, these."""
    if pick.first is not None or not is_late(pick, options, spare_s):
        return pick
    for route, found_s in options.forecasts:
        if route is not Route.INLINE and found_s <= spare_s:
            text = f"{pick.reason}, but that takes {dict(options.forecasts)[pick.route]:.3f} s, {route} {found_s:.3f} s"
            return Pick(route, Rule.ON_TIME, text, pick.uncached_tokens)
    return pick


def judge(options: Options, request: RequestView, threshold: int, inline_tokens: int) -> Pick:
    """Apply the rule. Exactly one route comes out, and only one that `options` can serve."""
    inline = options.inline_missing_tokens
    if inline <= inline_tokens:
        return Pick(Route.INLINE, Rule.CACHED, f"{inline} uncached tokens <= inline limit {inline_tokens}", inline)
    nearest = options.local_missing_tokens
    alone = inline if nearest is None else min(inline, nearest)
    holder = options.holder
    judged = alone if holder is None else min(alone, holder.missing_tokens)
    if judged > threshold:
        return _long(options, judged, threshold)
    if alone > threshold and holder is not None:
        held = request.num_tokens - holder.missing_tokens
        reason = f"{held} tokens cached in {holder.worker.site}, {judged} left <= threshold {threshold}; {alone} without"
        first = (holder, *(p for p in options.remote if p.worker is not holder.worker))
        return Pick(Route.REMOTE, Rule.CACHE_COPY, reason, judged, first)
    return _short(options, alone, threshold)


def _long(options: Options, judged: int, threshold: int) -> Pick:
    reason = f"{judged} uncached tokens > threshold {threshold}"
    if options.remote:
        return Pick(Route.REMOTE, Rule.LONG, reason, judged)
    route = Route.LOCAL if options.local else Route.INLINE
    return Pick(route, Rule.NO_REMOTE, f"{reason}, but no remote prefill worker is available", judged)


def _short(options: Options, alone: int, threshold: int) -> Pick:
    inline, decode = options.inline_missing_tokens, options.decode
    reason = f"{alone} uncached tokens <= threshold {threshold}"
    nearest = options.local_missing_tokens
    if nearest is not None:
        if inline <= threshold < nearest:
            text = f"{inline} uncached tokens on the decode worker, {nearest} on the nearest prefill worker"
            return Pick(Route.INLINE, Rule.APPEND, text, inline)
        return Pick(Route.LOCAL, Rule.SHORT, reason, alone)
    if options.remote and decode.running > 0:
        text = f"no prefill worker in {decode.site}, and an inline prefill would stall {decode.running} sequences"
        return Pick(Route.REMOTE, Rule.NO_LOCAL, text, alone)
    return Pick(Route.INLINE, Rule.NO_LOCAL, f"{reason}, and no prefill worker in {decode.site}", inline)
