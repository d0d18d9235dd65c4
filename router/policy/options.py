"""What a request could do: the decode worker it gets, and the workers that could prefill it there, near and far."""

from __future__ import annotations

import math
from dataclasses import dataclass

from prfaas.errors import NoWorkerAvailable
from prfaas.types import Role, Route, SiteId, WorkerId
from router.policy import filters, scorers
from router.policy.costs import Kind
from router.policy.view import FleetView, Link, RequestView, WorkerView


@dataclass(frozen=True, slots=True)
class Prefiller:
    """A worker that could prefill for the chosen decode worker.

    `cost_s`: seconds until the cache has landed: the queue and the compute, or what the link has to carry until then where
    that takes longer (layers are sent while later ones compute), and one round trip.
    """

    worker: WorkerView
    missing_tokens: int
    compute_s: float
    cost_s: float

    @property
    def wait_s(self) -> float:
        """Seconds beyond its own computing: the queue, the exposed wire and the round trip."""
        return self.cost_s - self.compute_s


@dataclass(frozen=True, slots=True)
class Options:
    """The chosen decode worker, and the cheapest few prefill workers of either kind, cheapest first."""

    decode: WorkerView
    inline_missing_tokens: int
    inline_compute_s: float
    kv_bytes: int
    local: tuple[Prefiller, ...]
    remote: tuple[Prefiller, ...]
    forecasts: tuple[tuple[Route, float], ...]  # TTFT of each route's best worker in seconds, where speeds are measured
    local_missing_tokens: int | None  # least that any prefill worker of the decode site would compute
    holder: Prefiller | None  # the far worker with the longest prefix, if any, among those whose link has bandwidth to spare


def survey(request: RequestView, view: FleetView, now_s: float, limit: int) -> Options:
    """Choose the decode worker, then list the `limit` cheapest workers of either kind that could prefill for it.

    Raises:
        NoWorkerAvailable: no decode worker is alive and large enough.
    """
    decode = choose_decode(request, view, now_s)
    num_bytes = scorers.kv_bytes(decode, request)
    local: list[_Ranked] = []
    remote: list[_Ranked] = []
    holders: list[_Ranked] = []
    oldest_s = now_s - view.member_timeout_s
    for site in view.prefill:
        ranked = _rank(request, view, decode, site, num_bytes, oldest_s, limit)
        if site == decode.site:
            local = ranked
        else:
            remote += ranked
            if Link(site, decode.site) not in view.tuning.scarce:
                holders += [r for r in ranked if r[2] < request.num_tokens]
    nearest = min((r[2] for r in local), default=None)
    local, remote = sorted(local)[:limit], sorted(remote)[:limit]
    inline_s = scorers.compute_s(decode, request, view.models.get(Kind(decode.site, decode.role)))
    holder = min(holders, key=lambda r: (r[2], r[0], r[1]), default=None)
    return Options(
        decode=decode,
        inline_missing_tokens=scorers.prefill_tokens(decode, request),
        inline_compute_s=inline_s,
        kv_bytes=num_bytes,
        local=tuple(_prefiller(r) for r in local),
        remote=tuple(_prefiller(r) for r in remote),
        forecasts=_forecasts(view, decode, decode.queued_s + inline_s, local, remote),
        local_missing_tokens=nearest,
        holder=None if holder is None else _prefiller(holder),
    )


def _forecasts(
    view: FleetView, decode: WorkerView, inline_s: float, local: list[_Ranked], remote: list[_Ranked]
) -> tuple[tuple[Route, float], ...]:
    """Landing, and then one decode step. A guess is no forecast: kinds of worker that nobody has measured are left out."""
    best = [(Route.INLINE, inline_s, decode)]
    best += [(route, ranked[0][0], ranked[0][4]) for route, ranked in ((Route.LOCAL, local), (Route.REMOTE, remote)) if ranked]
    return tuple((r, s + decode.decode_step_s) for r, s, worker in best if Kind(worker.site, worker.role) in view.models)


def choose_decode(request: RequestView, view: FleetView, now_s: float) -> WorkerView:
    """The cheapest decode worker. Raises NoWorkerAvailable.

    Freest first: a worker without anything of the prompt costs at least its load and the whole prompt, so that most of
    a large fleet needs no closer look once a free one is found.
    """
    oldest_s = now_s - view.member_timeout_s
    best: WorkerView | None = None
    least = math.inf
    whole = request.num_tokens / scorers.MISSING_TOKENS_PER_BATCH
    for worker in view.decode:
        if worker.load + whole >= least:
            if not request.cached_tokens:
                break
            if worker.worker_id not in request.cached_tokens:
                continue
        if filters.can_take(worker, request, oldest_s):
            cost = scorers.decode_cost(worker, request)
            if cost < least:
                best, least = worker, cost
    if best is None:
        raise NoWorkerAvailable(
            f"no decode worker can take a prompt of {request.num_tokens} tokens for {request.model} now "
            f"({len(view.decode)} registered)",
            role=Role.DECODE.value,
            model=request.model,
        )
    return best


# Cost, id (so that equal costs have an order), missing tokens, compute seconds, worker.
_Ranked = tuple[float, WorkerId, int, float, WorkerView]


def _rank(
    request: RequestView, view: FleetView, decode: WorkerView, site: SiteId, num_bytes: int, oldest_s: float, limit: int
) -> list[_Ranked]:
    """The site's able workers with their costs: all that hold something of the prompt, and of the others, which differ
    by their queues alone, the `limit` freest of each role. What holds for the whole site is computed once."""
    rtt_s = stream_s = 0.0
    if site != decode.site:
        way = Link(site, decode.site)
        link = view.links.get(way)
        rtt_s = link.rtt_s if link is not None else 0.0
        stream_s = scorers.stream_s(link, num_bytes, view.promised_bytes.get(way, 0))
    workers = filters.prefill_workers(view, decode, site, request)
    wanted = {worker.role: limit for worker in workers}  # further ones of each role that have nothing of the prompt cached
    models = {role: view.models.get(Kind(site, role)) for role in wanted}
    ranked: list[_Ranked] = []
    for worker in workers:
        cached = request.cached_tokens.get(worker.worker_id, 0)
        if not cached and not wanted[worker.role]:
            if not request.cached_tokens and not any(wanted.values()):
                break
            continue  # equally fast workers with shorter queues stand before it already
        if not filters.can_prefill(worker, request, decode, oldest_s):
            continue
        wanted[worker.role] -= not cached
        compute_s = scorers.compute_s(worker, request, models[worker.role])
        landed_s = max(worker.queued_s + compute_s, stream_s) + rtt_s
        ranked.append((landed_s, worker.worker_id, request.num_tokens - cached, compute_s, worker))
    return ranked


def _prefiller(ranked: _Ranked) -> Prefiller:
    cost_s, _, missing, compute_s, worker = ranked
    return Prefiller(worker, missing, compute_s, cost_s)
