"""What a request could do: the decode worker it gets, and the workers that could prefill it there, near and far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from prfaas.errors import NoWorkerAvailable
from prfaas.types import Decision, PrefillCandidate, Role, Route
from router.policy import filters, scorers
from router.policy.view import FleetView, Link, RequestView, WorkerView


class Rule(StrEnum):
    """Why a route was taken, as a metric label. The numbers behind it are in `Decision.reasons`."""

    CACHED = "cached"  # next to nothing is left to compute
    APPEND = "append"  # the decode worker alone holds the prefix
    SHORT = "short"  # at most the threshold
    LONG = "long"  # above the threshold
    CACHE_COPY = "cache_copy"  # another site holds the prefix and its link has room
    NO_LOCAL = "no_local_prefill"
    NO_REMOTE = "no_remote_prefill"
    CHEAPEST = "cheapest"  # lowest predicted cost that keeps the objective
    FASTEST = "fastest"  # nothing keeps the objective; the lowest predicted TTFT
    FORCED = "forced"
    FORCED_UNAVAILABLE = "forced_unavailable"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision and the rule that made it."""

    decision: Decision
    rule: Rule


class Policy(Protocol):
    """Decides one request. Pure: the same arguments give the same verdict."""

    def decide(self, request: RequestView, view: FleetView, now_s: float) -> Verdict:
        """Raises NoWorkerAvailable when no decode worker can take the request."""
        ...


@dataclass(frozen=True, slots=True)
class Prefiller:
    """A worker that could prefill for the chosen decode worker: tokens it would compute and seconds until landed."""

    worker: WorkerView
    missing_tokens: int
    cost_s: float
    copy_allowed: bool  # its cached prefix counts: same site, or the link has bandwidth to spare


@dataclass(frozen=True, slots=True)
class Options:
    """The chosen decode worker and both kinds of prefill worker, each cheapest first."""

    decode: WorkerView
    inline_missing_tokens: int
    kv_bytes: int
    local: tuple[Prefiller, ...]
    remote: tuple[Prefiller, ...]

    @property
    def local_missing_tokens(self) -> int:
        """Uncached tokens judged by the decode site's own caches alone (l_total - l_pd)."""
        return min((p.missing_tokens for p in self.local), default=self.inline_missing_tokens)


def survey(request: RequestView, view: FleetView, now_s: float) -> Options:
    """Choose the decode worker, then list who could prefill for it.

    Raises:
        NoWorkerAvailable: no decode worker is alive and large enough.
    """
    able = filters.decode_workers(request, view, now_s)
    if not able:
        raise NoWorkerAvailable(
            f"no decode worker can take a prompt of {request.num_tokens} tokens for {request.model} now "
            f"({len(view.decode)} registered)",
            role=Role.DECODE.value,
            model=request.model,
        )
    decode = min(able, key=lambda worker: scorers.decode_cost(worker, request))
    num_bytes = scorers.kv_bytes(decode, request)
    local: list[Prefiller] = []
    remote: list[Prefiller] = []
    for worker in filters.prefill_workers(request, view, decode, now_s):
        near = worker.site == decode.site
        path = Link(worker.site, decode.site)
        link = view.links.get(path)
        cost_s = scorers.prefill_cost_s(worker, request, None if near else link, num_bytes)
        option = Prefiller(worker, scorers.prefill_tokens(worker, request), cost_s, near or path not in view.tuning.scarce)
        (local if near else remote).append(option)
    return Options(
        decode=decode,
        inline_missing_tokens=scorers.prefill_tokens(decode, request),
        kv_bytes=num_bytes,
        local=_cheapest_first(local),
        remote=_cheapest_first(remote),
    )


def _cheapest_first(options: list[Prefiller]) -> tuple[Prefiller, ...]:
    return tuple(sorted(options, key=lambda p: (p.cost_s, p.worker.worker_id)))


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
