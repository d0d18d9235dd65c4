"""Which states a prompt's cache takes along so that the next turn can resume from them."""

from __future__ import annotations

from dataclasses import replace

from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, TensorSpec

FULL = CacheGroup("full", GroupKind.FULL, (3,), (TensorSpec("kv", (100,), DType.BF16),))  # 200 bytes a token
STATE = CacheGroup("state", GroupKind.STATE, (0, 1, 2), (TensorSpec("s", (1000,), DType.F32),))  # 12,000 bytes
HYBRID = CacheSpec((FULL, STATE), 16)


def test_states_go_along_where_they_add_at_most_a_quarter() -> None:
    assert HYBRID.request_bytes(180) == 48_000
    assert HYBRID.boundary_bytes(180) == 12_000
    assert HYBRID.boundary_bytes(179) == 0


def test_there_is_no_boundary_behind_which_nothing_is_left() -> None:
    small = CacheSpec((FULL, replace(STATE, tensors=(TensorSpec("s", (1,), DType.F32),))), 16)
    assert small.boundary_bytes(16) == 0
    assert small.boundary_bytes(17) == 12


def test_without_states_or_with_sliding_windows_nothing_goes_along() -> None:
    sliding = replace(FULL, name="window", kind=GroupKind.SLIDING, window_tokens=64)
    assert CacheSpec((FULL,), 16).boundary_bytes(10**6) == 0
    assert CacheSpec((FULL, sliding, STATE), 16).boundary_bytes(10**6) == 0
