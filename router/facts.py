"""What a worker announced once and for all, as policies see it. Knows nothing of loads or time."""

from __future__ import annotations

from functools import partial

from prfaas.modelspec import CacheGroup, CacheSpec, DType, TensorSpec
from prfaas.types import CacheGroupInfo, WorkerInfo
from router.policy.view import WorkerView


def cache_spec(info: WorkerInfo) -> CacheSpec:
    """A worker's announced cache groups as a spec, so that S_kv is computed by the same code everywhere. Each group
    becomes one layer with one tensor of as many one-byte elements as its entry has bytes."""
    return CacheSpec(tuple(_cache_group(group) for group in info.cache_groups), info.block_tokens)


def _cache_group(info: CacheGroupInfo) -> CacheGroup:
    tensor = TensorSpec(info.name, (info.entry_bytes,), DType.F8)
    return CacheGroup(info.name, info.kind, (0,), (tensor,), info.window_tokens)


def facts(info: WorkerInfo) -> partial[WorkerView]:
    """A worker's view but for when it was heard of (`seen_s`) and what its loads are."""
    return partial(
        WorkerView,
        worker_id=info.worker_id,
        site=info.site,
        role=info.role,
        address=info.address,
        model=info.model,
        fingerprint_digest=info.fingerprint_digest,
        cache=cache_spec(info),
        max_prompt_tokens=min(info.max_context_tokens - 1, info.total_blocks * info.block_tokens),
        max_running=max(1, info.max_running),
    )
