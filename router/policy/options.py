"""What a request could do: the decode worker it gets, and the workers that could prefill it there, near and far."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.errors import NoWorkerAvailable
from prfaas.types import Role
from router.policy import filters, scorers
from router.policy.view import FleetView, Link, RequestView, WorkerView


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
