"""Dividing a byte budget among cache groups. Needs no torch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.config import EngineSettings
from prfaas.engine.pool_sizes import plan_pools
from prfaas.errors import ConfigError
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, ModelSpec, TensorSpec

FULL = CacheGroup("full", GroupKind.FULL, (0, 4), (TensorSpec("k", (4, 8), DType.BF16),))
SLIDING = CacheGroup("sliding", GroupKind.SLIDING, (1, 2, 3), (TensorSpec("k", (4, 8), DType.BF16),), window_tokens=512)
STATE = CacheGroup("state", GroupKind.STATE, (5, 6), (TensorSpec("s", (4, 32, 32), DType.F32),))


def spec(*groups: CacheGroup, context: int = 32768) -> ModelSpec:
    return ModelSpec("m", "M", 10, 7, context, CacheSpec(groups, 64), (1,), Fingerprint("m", "t", "c"))


def used_bytes(model: ModelSpec, counts: dict[str, int]) -> int:
    return sum(g.bytes_between(0, 1 if g.is_state else 64) * counts[g.name] for g in model.cache.groups)


@given(
    budget=st.integers(1 << 21, 1 << 34),
    share=st.floats(0.05, 0.95),
    running=st.integers(1, 64),
    groups=st.sampled_from([(FULL,), (STATE,), (FULL, STATE), (FULL, SLIDING), (FULL, SLIDING, STATE)]),
    host=st.booleans(),
)
def test_pools_never_exceed_the_budget_and_states_keep_to_their_share(
    budget: int, share: float, running: int, groups: tuple[CacheGroup, ...], host: bool
) -> None:
    model = spec(*groups)
    settings = EngineSettings(
        cache_bytes=budget, state_snapshot_share=share, max_running=running, host_cache_bytes=budget // 2 if host else 0
    )
    try:
        sizes = plan_pools(model, settings)
    except ConfigError:
        window = (SLIDING.window_tokens or 0) + settings.max_step_tokens + 2 * 64 if SLIDING in groups else 0
        assert budget * min(share, 1 - share) < 4 * sum(g.bytes_between(0, 64 + window) for g in groups)
        return
    assert used_bytes(model, {n: s.device for n, s in sizes.items()}) <= budget
    assert used_bytes(model, {n: s.host for n, s in sizes.items()}) <= (budget // 2 if host else 0)
    assert host or all(s.host == 0 for s in sizes.values())
    if len(groups) > 1 and STATE in groups:
        assert sizes["state"].device * STATE.bytes_between(0, 1) <= budget * share


def test_what_states_do_not_need_goes_to_the_blocks() -> None:
    tiny_state = CacheGroup("state", GroupKind.STATE, (5,), (TensorSpec("s", (1,), DType.F32),))
    settings = EngineSettings(cache_bytes=1 << 26, max_running=8)
    sizes = plan_pools(spec(FULL, tiny_state), settings)
    assert sizes["state"].device == 2 * 8 + (1 << 25) // FULL.bytes_between(0, 64)
    left = (1 << 26) - sizes["state"].device * tiny_state.bytes_between(0, 1)
    assert sizes["full"].device == left // FULL.bytes_between(0, 64)


def test_a_sliding_group_gets_what_its_window_and_one_step_need() -> None:
    sizes = plan_pools(spec(FULL, SLIDING), EngineSettings(cache_bytes=1 << 28, max_step_tokens=512))
    whole, window = 8192 // 64, (512 + 512) // 64 + 1
    assert abs(sizes["sliding"].device / sizes["full"].device - window / whole) < 0.01
    short = plan_pools(spec(FULL, SLIDING, context=512), EngineSettings(cache_bytes=1 << 28, max_step_tokens=512))
    assert short["sliding"].device == short["full"].device


def test_a_pool_that_cannot_hold_one_sequence_names_the_group() -> None:
    with pytest.raises(ConfigError, match="'state'") as caught:
        plan_pools(spec(FULL, STATE), EngineSettings(cache_bytes=STATE.bytes_between(0, 1) * 3))
    assert caught.value.detail["group"] == "state"


def test_a_small_cache_still_holds_a_window_and_a_step() -> None:
    """In proportion the windows would get too little to run a single sequence."""
    window = (512 + 512) // 64 + 1
    settings = EngineSettings(cache_bytes=(window + 30) * 3 * FULL.bytes_between(0, 64), max_step_tokens=512)
    sizes = plan_pools(spec(FULL, SLIDING), settings)
    assert sizes["sliding"].device == window
    assert sizes["full"].device > window


def test_a_window_that_cannot_fit_says_what_to_change() -> None:
    settings = EngineSettings(cache_bytes=1 << 17, max_step_tokens=512)
    with pytest.raises(
        ConfigError, match=r"'sliding'.*at least 17; raise cache_bytes to (\d+) or lower max_step_tokens"
    ) as caught:
        plan_pools(spec(FULL, SLIDING, STATE), settings)
    wanted = int(caught.value.message.partition("cache_bytes to ")[2].split()[0])
    assert plan_pools(spec(FULL, SLIDING, STATE), settings.model_copy(update={"cache_bytes": wanted}))
    assert plan_pools(spec(FULL, SLIDING), settings.model_copy(update={"max_step_tokens": 64}))
