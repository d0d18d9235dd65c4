"""How many blocks and state slots fit into a byte budget. Arithmetic only; allocates nothing and knows no device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from prfaas.config import EngineSettings
from prfaas.engine.backend import PoolSize
from prfaas.errors import ConfigError
from prfaas.modelspec import CacheGroup, GroupKind, ModelSpec

# A sliding group needs blocks per sequence, a full group needs blocks per token. The two share a budget in the
# proportion that sequences of this length (or of the whole context, when that is shorter) would use them.
REFERENCE_TOKENS = 8192

# A running state, and one snapshot of it.
MIN_STATE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class _Demand:
    """What one sequence of the reference length takes of a paged group, and the least that one sequence can run with."""

    group: CacheGroup
    blocks: int
    least: int
    block_bytes: int


def plan_pools(spec: ModelSpec, settings: EngineSettings) -> Mapping[str, PoolSize]:
    """Divide `cache_bytes` (and `host_cache_bytes`, None like 0) among the model's cache groups.

    States take at most `state_snapshot_share` of the budget, and no more slots than could ever be in use: one running
    and one spare per running sequence, and one snapshot for each block of the attention pools. The other groups get
    the rest in the proportion of `REFERENCE_TOKENS`, but a SLIDING group never less than one sequence's window and one
    step after it. Raises ConfigError, naming a sufficient budget, when a pool could not hold one sequence.
    """
    device = _divide(spec, settings, settings.cache_bytes)
    least = {d.group.name: d.least for d in _demands(spec, settings)}
    for group in spec.cache.groups:
        needed = least.get(group.name, MIN_STATE_SLOTS)
        if device[group.name] < needed:
            unit = "state slots" if group.is_state else "blocks"
            window = f" or lower max_step_tokens ({settings.max_step_tokens})" if group.kind is GroupKind.SLIDING else ""
            raise ConfigError(
                f"cache_bytes = {settings.cache_bytes} leaves {device[group.name]} {unit} for the cache group "
                f"{group.name!r} of {spec.name}, which needs at least {needed}; raise cache_bytes to "
                f"{_sufficient_bytes(spec, settings)}{window}",
                group=group.name,
                cache_bytes=settings.cache_bytes,
            )
    host = _divide(spec, settings, settings.host_cache_bytes or 0)
    return {name: PoolSize(device=count, host=host[name]) for name, count in device.items()}


def _sufficient_bytes(spec: ModelSpec, settings: EngineSettings) -> int:
    """A budget with which every pool can hold one sequence."""
    paged = sum(d.least * d.block_bytes for d in _demands(spec, settings))
    states = MIN_STATE_SLOTS * sum(g.bytes_between(0, 1) for g in spec.cache.groups if g.is_state)
    share = settings.state_snapshot_share
    return states if not paged else math.ceil(max(states / share, paged / (1 - share) if states else paged))


def _divide(spec: ModelSpec, settings: EngineSettings, budget_bytes: int) -> dict[str, int]:
    states = [g for g in spec.cache.groups if g.is_state]
    demands = _demands(spec, settings)
    slot_bytes = sum(g.bytes_between(0, 1) for g in states)
    share = settings.state_snapshot_share if demands else 1.0
    slots = int(budget_bytes * share) // slot_bytes if slot_bytes else 0
    if demands:
        blocks = _divide_paged(demands, budget_bytes - slots * slot_bytes)
        useful = 2 * settings.max_running + max(blocks.values())
        if slots > useful:
            slots = useful
            blocks = _divide_paged(demands, budget_bytes - slots * slot_bytes)
    else:
        blocks = {}
    return {g.name: slots if g.is_state else blocks[g.name] for g in spec.cache.groups}


def _demands(spec: ModelSpec, settings: EngineSettings) -> list[_Demand]:
    block_tokens = spec.cache.block_tokens
    context = -(-spec.max_context_tokens // block_tokens)
    whole = min(context, -(-REFERENCE_TOKENS // block_tokens))
    demands = []
    for group in spec.cache.groups:
        if group.is_state:
            continue
        blocks, least = whole, 1
        if group.kind is GroupKind.SLIDING and group.window_tokens is not None:
            window = -(-(group.window_tokens + settings.max_step_tokens) // block_tokens) + 1
            blocks, least = min(whole, window), min(context, window)
        demands.append(_Demand(group, blocks, least, group.bytes_between(0, block_tokens)))
    return demands


def _divide_paged(demands: list[_Demand], budget_bytes: int) -> dict[str, int]:
    """Proportional, after groups whose proportional part is too little have got their least, as far as that goes."""
    total = sum(d.blocks * d.block_bytes for d in demands)
    parts = {d.group.name: budget_bytes * d.blocks // total for d in demands}
    short = [d for d in demands if parts[d.group.name] < d.least]
    if not short or len(short) == len(demands):
        return parts
    floors = {d.group.name: d.least for d in short}
    left = budget_bytes - sum(d.least * d.block_bytes for d in short)
    if left < 0:
        return parts
    return floors | _divide_paged([d for d in demands if d.group.name not in floors], left)
