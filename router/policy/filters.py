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


def decode_workers(request: RequestView, view: FleetView, now_s: float) -> list[WorkerView]:
    """Workers that can land and decode the request now."""
    oldest_s = now_s - view.member_timeout_s
    return [worker for worker in view.decode if can_take(worker, request, oldest_s)]


def prefill_workers(request: RequestView, view: FleetView, decode: WorkerView, site: SiteId, now_s: float) -> list[WorkerView]:
    """Workers of `site` that can prefill the request for `decode`: same model files, and a path that may be used."""
    if site != decode.site and (not request.may_leave or Link(site, decode.site) in view.tuning.folded):
        return []
    oldest_s, digest = now_s - view.member_timeout_s, decode.fingerprint_digest
    return [w for w in view.prefill[site] if w.fingerprint_digest == digest and can_take(w, request, oldest_s)]
