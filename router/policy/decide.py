"""What a policy hands back, and how a pick becomes a decision with its failure ladder. Shared by all policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from prfaas.types import Decision, PrefillCandidate, Route
from router.policy.options import Options, Prefiller
from router.policy.view import FleetView, RequestView

# A queue this short, in objectives, leaves capacity to requests that are late anyway.
SLACK_SLOS = 0.05


class Rule(StrEnum):
    """Why a route was taken, as a metric label. The numbers behind it are in `Decision.reasons`."""

    CACHED = "cached"  # next to nothing is left to compute
    APPEND = "append"  # the decode worker alone holds the prefix
    SHORT = "short"  # at most the threshold
    LONG = "long"  # above the threshold
    CACHE_COPY = "cache_copy"  # another site holds the prefix and its link has room
    NO_LOCAL = "no_local_prefill"
    NO_REMOTE = "no_remote_prefill"
    ON_TIME = "on_time"  # the rule's route would be late, this one is not
    CHEAPEST = "cheapest"  # lowest predicted cost that keeps the objective
    FASTEST = "fastest"  # nothing keeps the objective; the lowest predicted TTFT
    LEFTOVER = "leftover"  # late anyway, and first done where nobody waits
    FORCED = "forced"
    FORCED_UNAVAILABLE = "forced_unavailable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, the rule that made it, the compute seconds it puts on the first prefilling worker, and the bytes that a
    prefill elsewhere has to ship. `late`: by forecast the objective will be missed whatever is done, so that the request should
    not take from others what they need to keep theirs."""

    decision: Decision
    rule: Rule
    compute_s: float = 0.0
    kv_bytes: int = 0
    late: bool = False


class Policy(Protocol):
    """Decides one request. Pure: the same arguments give the same verdict."""

    def decide(self, request: RequestView, view: FleetView, now_s: float) -> Verdict:
        """Raises NoWorkerAvailable when no decode worker can take the request."""
        ...


@dataclass(frozen=True, slots=True)
class Pick:
    """A route with its grounds. `candidates` overrides the order of that route's workers."""

    route: Route
    rule: Rule
    reason: str
    uncached_tokens: int
    first: tuple[Prefiller, ...] | None = None


def force(route: Route, options: Options) -> Pick:
    """The operator's route, or the nearest one that exists."""
    inline = options.inline_missing_tokens
    local, remote = (Route.LOCAL, options.local), (Route.REMOTE, options.remote)
    if route is Route.INLINE:
        return Pick(Route.INLINE, Rule.FORCED, "route inline is forced", inline)
    for choice, workers in (local, remote) if route is Route.LOCAL else (remote, local):
        if workers:
            missing = min(p.missing_tokens for p in workers)
            if choice is route:
                return Pick(choice, Rule.FORCED, f"route {route} is forced", missing)
            text = f"route {route} is forced, but it has no prefill worker available"
            return Pick(choice, Rule.FORCED_UNAVAILABLE, text, missing)
    return Pick(Route.INLINE, Rule.FORCED_UNAVAILABLE, f"route {route} is forced, but no prefill worker is available", inline)


def leftover(options: Options, slo_s: float) -> Pick | None:
    """For a request that is late anyway: the worker without a queue that is done first, or None where all have one."""
    idle = [(p.cost_s, Route.LOCAL, p) for p in options.local if p.worker.queued_s <= SLACK_SLOS * slo_s]
    idle += [(p.cost_s, Route.REMOTE, p) for p in options.remote if p.worker.queued_s <= SLACK_SLOS * slo_s]
    if not idle:
        return None
    cost_s, route, best = min(idle, key=lambda each: each[:2])
    same = options.local if route is Route.LOCAL else options.remote
    first = (best, *(p for p in same if p is not best))
    return Pick(route, Rule.LEFTOVER, f"late, and {route} in {cost_s:.3f} s", best.missing_tokens, first)


def conclude(pick: Pick, options: Options, threshold: int, max_candidates: int, *, late: bool = False) -> Verdict:
    """Turn a pick into a decision with its failure ladder."""
    candidates: tuple[PrefillCandidate, ...] = ()
    compute_s = options.inline_compute_s
    if pick.route is not Route.INLINE:
        own, other = (options.local, options.remote) if pick.route is Route.LOCAL else (options.remote, options.local)
        first = pick.first or own
        candidates = ladder(first, pick.route, other, max_candidates)
        compute_s = first[0].compute_s
    decision = Decision(
        decode_worker=options.decode.worker_id,
        decode_address=options.decode.address,
        route=pick.route,
        candidates=candidates,
        reasons=(pick.reason,),
        uncached_tokens=pick.uncached_tokens,
        threshold_tokens=threshold,
        predicted_ttft_s=options.forecasts,
    )
    return Verdict(decision, pick.rule, compute_s, options.kv_bytes, late)


def ladder(first: Sequence[Prefiller], route: Route, other: Sequence[Prefiller], limit: int) -> tuple[PrefillCandidate, ...]:
    """The failure ladder: the chosen route's workers, then the other route's.

    The last place goes to the other route where there is one, so that the loss of a whole site or link costs one
    rung and not the ladder. The rung below, prefilling on the decode worker, needs no entry.
    """
    spare = Route.LOCAL if route is Route.REMOTE else Route.REMOTE
    keep = limit - 1 if other and limit > 1 else limit
    rungs = [(p, route) for p in first[:keep]]
    rungs += [(p, spare) for p in other[: limit - len(rungs)]]
    return tuple(PrefillCandidate(p.worker.worker_id, p.worker.site, p.worker.address, r) for p, r in rungs)
