"""Which workers can take a request at all. Each filter answers one question about one worker."""

from __future__ import annotations

from router.policy.view import FleetView, Link, RequestView, WorkerView


def is_available(worker: WorkerView, request: RequestView, now_s: float, timeout_s: float) -> bool:
    """Heard of lately, taking new work, and not already failed by this request."""
    return (
        not worker.draining
        and not worker.suspect
        and now_s - worker.seen_s <= timeout_s
        and worker.worker_id not in request.exclude
    )


def fits(worker: WorkerView, request: RequestView) -> bool:
    """The worker serves the model, and its context and cache can hold prompt and output when it is otherwise empty."""
    return (
        worker.model == request.model
        and request.num_tokens < worker.max_context_tokens
        and blocks_for(worker, request.num_tokens) <= worker.total_blocks
    )


def blocks_for(worker: WorkerView, num_tokens: int) -> int:
    """Cache blocks that hold `num_tokens` tokens."""
    return -(-num_tokens // worker.cache.block_tokens)


def decode_workers(request: RequestView, view: FleetView, now_s: float) -> list[WorkerView]:
    """Workers that can land and decode the request now."""
    timeout_s = view.member_timeout_s
    return [w for w in view.decode if is_available(w, request, now_s, timeout_s) and fits(w, request)]


def prefill_workers(request: RequestView, view: FleetView, decode: WorkerView, now_s: float) -> list[WorkerView]:
    """Workers that can prefill the request for `decode`: same model files, and a path that is not folded."""
    timeout_s, folded = view.member_timeout_s, view.tuning.folded
    return [
        w
        for w in view.prefill
        if w.fingerprint_digest == decode.fingerprint_digest
        and is_available(w, request, now_s, timeout_s)
        and fits(w, request)
        and (w.site == decode.site or Link(w.site, decode.site) not in folded)
    ]
