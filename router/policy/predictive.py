"""Our own routing rule: forecast every option, and take the one that costs the fleet least among those that keep the
objective for the time to first token.

The paper's threshold splits traffic at one length. This policy prices each request where it would be served:

* time: queue + the longer of compute and wire + round trip, per option; at most `ttft_slo_s` keeps the objective;
* money: busy instance-seconds and bytes sent at the operator's prices; the cheapest option that keeps the objective
  wins, and with no prices all cost the same;
* load, between options of equal price: the growth of half the sum of squared backlogs. Putting work T on a resource
  with backlog W adds T * (W + T / 2). Minimising this drift keeps every queue stable whenever some routing does, without
  knowing arrival rates (MaxWeight; Tassiulas and Ephremides, 1992); its self term prefers the worker that is
  comparatively faster, so long prompts lean to the faster chips, and a busy link weighs as a busy worker does. The time
  to first token is added (drift plus penalty; Neely, 2010), so that an idle fleet is routed for latency.

So the split moves with load, cache, link and length together, and degrades smoothly where a threshold would jump.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.config import PolicySettings
from prfaas.types import Route, SiteId
from router.policy import scorers
from router.policy.costs import Prices
from router.policy.decide import Pick, Rule, Verdict, conclude, force
from router.policy.options import Options, Prefiller, survey
from router.policy.view import FleetView, Link, RequestView

# Weight of one second of the request's own wait against one second of backlog growth. Small: under load throughput
# decides; larger than zero: an idle fleet answers as fast as it can.
LATENCY_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one option would do: seconds to the first token, money, and growth of backlogs in seconds."""

    route: Route
    ttft_s: float
    money: float
    drift_s: float
    prefiller: Prefiller | None  # None: inline
    missing_tokens: int
    stalls: bool = False  # running sequences would miss their objective for the time between tokens

    @property
    def burden_s(self) -> float:
        return self.drift_s + LATENCY_WEIGHT * self.ttft_s


class PredictivePolicy:
    """Implements `Policy`. The short loop's threshold is not used; folded links and the models in the view are."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._prices = Prices(
            {SiteId(k): v for k, v in settings.price_per_instance_hour.items()},
            {SiteId(k): v for k, v in settings.price_per_egress_gbyte.items()},
        )

    def decide(self, request: RequestView, view: FleetView, now_s: float) -> Verdict:
        """Raises NoWorkerAvailable when no decode worker can take the request."""
        limit, slo_s = self._settings.max_candidates, self._settings.ttft_slo_s
        options = survey(request, view, now_s, limit)
        forecasts = self._forecasts(request, view, options)
        if self._settings.force_route is not None:
            pick = force(Route(self._settings.force_route), options)
        elif options.inline_missing_tokens <= self._settings.inline_tokens:
            tokens = options.inline_missing_tokens
            reason = f"{tokens} uncached tokens <= inline limit {self._settings.inline_tokens}"
            pick = Pick(Route.INLINE, Rule.CACHED, reason, tokens)
        else:
            pick = choose(forecasts, options, slo_s)
        return conclude(pick, options, view.tuning.threshold_tokens, limit)

    def _forecasts(self, request: RequestView, view: FleetView, options: Options) -> list[Forecast]:
        slo_s = self._settings.ttft_slo_s
        made = [self._inline(options, slo_s)]
        made += [self._at(Route.LOCAL, p, options, view, slo_s) for p in options.local]
        made += [self._at(Route.REMOTE, p, options, view, slo_s) for p in options.remote]
        return made

    def _inline(self, options: Options, slo_s: float) -> Forecast:
        """On the decode worker: its running sequences stand still meanwhile, which counts as lost work too."""
        decode, compute_s = options.decode, options.inline_compute_s
        stall_s = compute_s * decode.running / decode.max_running
        stalls = decode.running > 0 and compute_s > self._settings.itl_slo_s
        drift_s = compute_s * (decode.queued_s + compute_s / 2) / slo_s + stall_s
        ttft_s = decode.queued_s + compute_s + decode.decode_step_s
        money = self._prices.of(decode.site, compute_s, 0)
        return Forecast(Route.INLINE, ttft_s, money, drift_s, None, options.inline_missing_tokens, stalls)

    def _at(self, route: Route, option: Prefiller, options: Options, view: FleetView, slo_s: float) -> Forecast:
        """On a prefill worker. A link is a resource with a backlog like any other; a local network is taken as free."""
        worker, decode = option.worker, options.decode
        drift_s = option.compute_s * (worker.queued_s + option.compute_s / 2) / slo_s
        sent_bytes = 0
        if route is Route.REMOTE:
            link = view.links.get(Link(worker.site, decode.site))
            sent_bytes = options.kv_bytes
            behind_s = scorers.stream_s(link, 0)
            wire_s = scorers.stream_s(link, sent_bytes) - behind_s
            drift_s += wire_s * (behind_s + wire_s / 2) / slo_s
        money = self._prices.of(worker.site, option.compute_s, sent_bytes)
        return Forecast(route, option.cost_s + decode.decode_step_s, money, drift_s, option, option.missing_tokens)


def choose(forecasts: list[Forecast], options: Options, slo_s: float) -> Pick:
    """The cheapest forecast that keeps the objective; where none does, the one with the least burden.

    An inline prefill that stalls the sequences running there is taken only when there is nowhere else to go.
    """
    forecasts = [f for f in forecasts if not f.stalls] or forecasts
    keeping = [f for f in forecasts if f.ttft_s <= slo_s]
    if keeping:
        best = min(keeping, key=lambda f: (f.money, f.burden_s, f.route))
        rule, why = Rule.CHEAPEST, f"<= {slo_s:g} s"
    else:
        best = min(forecasts, key=lambda f: (f.burden_s, f.route))
        rule, why = Rule.FASTEST, f"and nothing keeps {slo_s:g} s"
    others = ", ".join(f"{f.route} {f.ttft_s:.3f} s" for f in _best_of_each_route(forecasts) if f.route is not best.route)
    reason = f"{best.route} in {best.ttft_s:.3f} s {why}, {best.missing_tokens} uncached tokens"
    if others:
        reason += f"; instead: {others}"
    first = None
    if best.prefiller is not None:
        same = options.local if best.route is Route.LOCAL else options.remote
        first = (best.prefiller, *(p for p in same if p is not best.prefiller))
    return Pick(best.route, rule, reason, best.missing_tokens, first)


def _best_of_each_route(forecasts: list[Forecast]) -> list[Forecast]:
    best: dict[Route, Forecast] = {}
    for forecast in forecasts:
        known = best.get(forecast.route)
        if known is None or forecast.ttft_s < known.ttft_s:
            best[forecast.route] = forecast
    return [best[route] for route in Route if route in best]
