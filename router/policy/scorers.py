"""How good a worker is for a request, as a cost: lower is better. Plain arithmetic on the snapshot."""

from __future__ import annotations

from prfaas.types import LinkView
from router.policy.costs import UNKNOWN_S_PER_TOKEN, PrefillModel
from router.policy.view import RequestView, WorkerView

# Prompt tokens missing on a decode worker that weigh as much as a full batch already running there. About what a
# bandwidth-dense chip computes in the time in which its batch emits a hundred tokens per sequence.
MISSING_TOKENS_PER_BATCH = 8192
BACKED_UP_S = 0.1  # a link with more than this queued, at its nominal rate, shows what it can carry
SILENT_S = 1.0  # a receiver with transfers under way that has heard nothing for this long is cut off
NEARLY_DEAD_BYTES_PER_S = 1e4  # stands for zero, so that a dead link is very slow instead of a division by zero


def decode_cost(worker: WorkerView, request: RequestView) -> float:
    """Cost of decoding on `worker`, in units of one full batch: load, missing prefix and missing memory.

    A batch that is full means waiting, so load above 1 counts twice; room that is not there means preemption, so it
    costs as much as a full batch.
    """
    load = worker.running / worker.max_running
    missing = request.num_tokens - request.cached_tokens.get(worker.worker_id, 0)
    cost = load + max(0.0, load - 1.0) + missing / MISSING_TOKENS_PER_BATCH
    if missing + request.max_tokens > worker.free_tokens:
        cost += 1.0
    return cost


def prefill_tokens(worker: WorkerView, request: RequestView) -> int:
    """Prompt tokens that `worker` would have to compute."""
    return request.num_tokens - request.cached_tokens.get(worker.worker_id, 0)


def kv_bytes(decode: WorkerView, request: RequestView) -> int:
    """Bytes to ship to `decode`: S_kv of the prompt less the prefix it holds (arXiv:2604.15039, section 2), and the states
    that the next turn resumes from."""
    held = request.cached_tokens.get(decode.worker_id, 0)
    return decode.cache.request_bytes(request.num_tokens, held) + decode.cache.boundary_bytes(request.num_tokens)


def link_rate(link: LinkView) -> float:
    """Bytes per second the link can carry now; 0 when unknown.

    A link with a backlog shows what it carries: a brown-out is known by the goodput under backlog, not by the capacity
    that was once configured or measured, and an outage by silence while bytes are waiting.
    """
    if link.queued_bytes > BACKED_UP_S * link.capacity_bytes_per_s and link.active_transfers > 0:
        return NEARLY_DEAD_BYTES_PER_S if link.age_s > SILENT_S else max(link.goodput_bytes_per_s, NEARLY_DEAD_BYTES_PER_S)
    if link.capacity_bytes_per_s <= 0:
        return 0.0  # nothing ever waited for this link: what it carried says what was computed, not what it can carry
    return max(link.capacity_bytes_per_s, link.goodput_bytes_per_s)


def backlog_s(link: LinkView) -> float:
    """Seconds until what is queued on the link is through; 0 where nothing is known."""
    rate = link_rate(link)
    return link.queued_bytes / rate if rate > 0 else 0.0


def stream_s(link: LinkView | None, num_bytes: int, promised_bytes: int = 0) -> float:
    """Seconds to move `num_bytes` behind what is queued on `link` or promised to it, round trip left out; 0 where nothing is
    known. Much of what is promised may have landed, or come later: it counts in full, so that a link is not overbooked."""
    rate = link_rate(link) if link is not None else 0.0
    return (max(link.queued_bytes, promised_bytes) + num_bytes) / rate if link is not None and rate > 0 else 0.0


def compute_s(worker: WorkerView, request: RequestView, model: PrefillModel | None) -> float:
    """Seconds to compute what `worker` lacks of the prompt: its kind's model, or its reported speed before there is one."""
    cached = request.cached_tokens.get(worker.worker_id, 0)
    missing = request.num_tokens - cached
    if model is not None:
        return model.seconds(missing, cached)
    return missing / worker.prefill_tokens_per_s if worker.prefill_tokens_per_s > 0 else missing * UNKNOWN_S_PER_TOKEN
