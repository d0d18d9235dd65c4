"""Our own routing rule: forecast every option, and take the one that costs the fleet least among those that keep the
objective for the time to first token.

The paper's threshold splits traffic at one length. This policy prices each request where it would be served:

* time: queue + the longer of compute and wire + round trip, per option; at most `ttft_slo_s` keeps the objective;
* money: busy instance-seconds and bytes sent at the operator's prices; the cheapest option that keeps the objective
  wins, and with no prices all cost the same;
* load, between options of equal price: work is dear where it is scarce and where it waits. At the best threshold t a prompt
  of length t burdens either side equally, so the dual prices of the planner's throughput model ("Prefill-as-a-Service",
  arXiv:2604.15039, section 3) stand in the ratio T_near(t) / T_far(t); with them, an idle fleet already keeps its faster
  chips for the prompts that gain most from them. A backlog W raises the price of work T put behind it by the growth of half
  the sum of squared backlogs, T * (W + T / 2): minimising this drift keeps every queue stable whenever some routing does,
  without knowing arrival rates (MaxWeight; Tassiulas and Ephremides, 1992), and a busy link weighs as a busy worker does.
  The time to first token is added (drift plus penalty; Neely, 2010).

Forecasts need measurements: while a kind of worker has none, the paper's rule decides.

So the split moves with load, cache, link and length together, and degrades smoothly where a threshold would jump.
"""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.config import PolicySettings
from prfaas.types import Role, Route, SiteId
from router.policy import scorers
from router.policy.costs import Kind, Prices
from router.policy.decide import Pick, Rule, Verdict, conclude, force, leftover
from router.policy.options import Options, Prefiller, survey
from router.policy.threshold import ThresholdPolicy
from router.policy.view import FleetView, Link, RequestView, WorkerView

# Weight of one second of the request's own wait against one second of work. Small: under load throughput decides; larger
# than zero: an idle fleet answers fast.
LATENCY_WEIGHT = 0.2
MAX_PRICE = 8.0  # of a second of far work in seconds of near work; its inverse is the least


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one option would do: seconds to the first token, money, and the priced work in seconds."""

    route: Route
    ttft_s: float
    money: float
    work_s: float
    prefiller: Prefiller | None  # None: inline
    missing_tokens: int
    stalls: bool = False  # running sequences would miss their objective for the time between tokens
    spare: bool = False  # over a link that is short, with a prompt below the floor

    @property
    def burden_s(self) -> float:
        return self.work_s + LATENCY_WEIGHT * self.ttft_s


class PredictivePolicy:
    """Implements `Policy`. Of the tuning, folded links and the floor are obeyed, and the threshold sets
    the price of far work."""

    def __init__(self, settings: PolicySettings) -> None:
        self._settings = settings
        self._unmeasured = ThresholdPolicy(settings)
        self._prices = Prices(
            {SiteId(k): v for k, v in settings.price_per_instance_hour.items()},
            {SiteId(k): v for k, v in settings.price_per_egress_gbyte.items()},
        )

    def decide(self, request: RequestView, view: FleetView, now_s: float) -> Verdict:
        """Raises NoWorkerAvailable when no decode worker can take the request."""
        limit, slo_s = self._settings.max_candidates, self._settings.ttft_slo_s
        options = survey(request, view, now_s, limit)
        if not measured(options, view):
            return self._unmeasured.rule(options, request, view)
        forecasts = self._forecasts(request, view, options)
        if self._settings.force_route is not None:
            pick = force(Route(self._settings.force_route), options)
        elif options.inline_missing_tokens <= self._settings.inline_tokens:
            tokens = options.inline_missing_tokens
            reason = f"{tokens} uncached tokens <= inline limit {self._settings.inline_tokens}"
            pick = Pick(Route.INLINE, Rule.CACHED, reason, tokens)
        else:
            found = leftover(options, slo_s) if request.patient else None
            pick = found or choose(forecasts, options, request.spare_s(slo_s))
        late = pick.rule is Rule.FASTEST and len(options.forecasts) > 0 and self._settings.adaptive
        return conclude(pick, options, view.tuning.threshold_tokens, limit, late=late)

    def _forecasts(self, request: RequestView, view: FleetView, options: Options) -> list[Forecast]:
        own = Kind(options.decode.site, options.decode.role)
        made = [self._inline(options)] if own in view.models or not (options.local or options.remote) else []
        made += [self._at(Route.LOCAL, p, options, view) for p in options.local]
        floor = view.tuning.floor_tokens if options.local else 0  # links that are short carry the longest prompts only
        made += [self._at(Route.REMOTE, p, options, view, spare=p.missing_tokens <= floor) for p in options.remote]
        return made

    def _priced(self, work_s: float, behind_s: float, price: float = 1.0) -> float:
        """Seconds of work, dearer the more of it waits already."""
        return price * work_s * (1 + (behind_s + work_s / 2) / self._settings.ttft_slo_s)

    def _inline(self, options: Options) -> Forecast:
        """On the decode worker: its running sequences stand still meanwhile, which counts as lost work too."""
        decode, compute_s = options.decode, options.inline_compute_s
        stall_s = compute_s * decode.running / decode.max_running
        stalls = decode.running > 0 and compute_s > self._settings.itl_slo_s
        work_s = self._priced(compute_s, decode.queued_s) + stall_s
        ttft_s = decode.queued_s + compute_s + decode.decode_step_s
        money = self._prices.of(decode.site, compute_s, 0)
        return Forecast(Route.INLINE, ttft_s, money, work_s, None, options.inline_missing_tokens, stalls)

    def _at(self, route: Route, option: Prefiller, options: Options, view: FleetView, *, spare: bool = False) -> Forecast:
        """On a prefill worker. A link is a resource with a backlog like any other; a local network is taken as free."""
        worker, decode = option.worker, options.decode
        price = far_price(view, worker, decode) if route is Route.REMOTE else 1.0
        work_s = self._priced(option.compute_s, worker.queued_s, price)
        sent_bytes = 0
        if route is Route.REMOTE:
            way = Link(worker.site, decode.site)
            link = view.links.get(way)
            sent_bytes = options.kv_bytes
            behind_s = scorers.stream_s(link, 0, view.promised_bytes.get(way, 0))
            wire_s = scorers.stream_s(link, sent_bytes, view.promised_bytes.get(way, 0)) - behind_s
            work_s += wire_s * (behind_s + wire_s / 2) / self._settings.ttft_slo_s
        money = self._prices.of(worker.site, option.compute_s, sent_bytes)
        ttft_s = option.cost_s + decode.decode_step_s
        return Forecast(route, ttft_s, money, work_s, option, option.missing_tokens, spare=spare)


def measured(options: Options, view: FleetView) -> bool:
    """Whether there are forecasts for all workers that could prefill this request; inline needs none while there are others."""
    others = [*options.local, *options.remote]
    kinds = {Kind(p.worker.site, p.worker.role) for p in others} or {Kind(options.decode.site, options.decode.role)}
    return kinds <= view.models.keys()


def far_price(view: FleetView, far: WorkerView, decode: WorkerView) -> float:
    """What a second of a far worker's time is worth in seconds of the decode site's: T_near(t) / T_far(t) at the planned
    threshold t. 1 where a kind of worker has not been measured or the decode site has none that prefill."""
    near_model = view.models.get(Kind(decode.site, Role.PD_PREFILL))
    far_model = view.models.get(Kind(far.site, far.role))
    if near_model is None or far_model is None or decode.site not in view.prefill:
        return 1.0
    tokens = max(1, view.tuning.threshold_tokens)
    near_s, far_s = near_model.seconds(tokens), far_model.seconds(tokens)
    return min(MAX_PRICE, max(1 / MAX_PRICE, near_s / far_s)) if near_s > 0 and far_s > 0 else 1.0


def choose(forecasts: list[Forecast], options: Options, slo_s: float) -> Pick:
    """The cheapest forecast that keeps the objective; where none does, the one with the least burden.

    An inline prefill that stalls the sequences running there is taken only when there is nowhere else to go.
    """
    forecasts = [f for f in forecasts if not f.stalls] or forecasts
    keeping = [f for f in forecasts if f.ttft_s <= slo_s]
    keeping = [f for f in keeping if not f.spare] or keeping
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
