"""Which workers can take a request at all. Pure look-ups on the snapshot."""

from __future__ import annotations

from prfaas.types import SiteId
from router.policy.view import FleetView, Link, RequestView, WorkerView


def can_take(worker: WorkerView, request: RequestView, oldest_s: float) -> bool:
    """The worker was heard of at `oldest_s` or later, takes new work, has not failed this request, serves its model,
    and could hold it if it were otherwise empty."""
    return (
        worker.seen_s >= oldest_s
        and not worker.draining
        and not worker.suspect
        and request.num_tokens <= worker.max_prompt_tokens
        and worker.model == request.model
        and worker.worker_id not in request.exclude
    )


def can_prefill(worker: WorkerView, request: RequestView, decode: WorkerView, oldest_s: float) -> bool:
    """The worker can take the request and has the same model files as its decode worker."""
    return worker.fingerprint_digest == decode.fingerprint_digest and can_take(worker, request, oldest_s)


def prefill_workers(view: FleetView, decode: WorkerView, site: SiteId, request: RequestView) -> tuple[WorkerView, ...]:
    """The site's workers with an open prefill door; none where the way from there may not be used."""
    if site != decode.site and (not request.may_leave or Link(site, decode.site) in view.tuning.folded):
        return ()
    return view.prefill[site]
