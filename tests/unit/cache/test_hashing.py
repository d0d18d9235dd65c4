"""Block names are a function of the whole prefix, the block size and the salt, and of nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.cache.hashing import HASH_BYTES, extend_hashes, hash_blocks, root_hash

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=70)


def test_names_are_the_same_on_every_machine() -> None:
    assert hash_blocks([1, 2, 3, 4], 2)[1].hex() == "6cb957de7a01ef9523c69cb396709f68"


@given(tokens=TOKENS, block=st.integers(1, 9))
def test_only_full_blocks_are_named(tokens: list[int], block: int) -> None:
    names = hash_blocks(tokens, block)
    assert len(names) == len(tokens) // block
    assert all(len(name) == HASH_BYTES for name in names)
    assert len(set(names)) == len(names)


@given(tokens=TOKENS, block=st.integers(1, 9), cut=st.integers(0, 8))
def test_extending_equals_hashing_at_once(tokens: list[int], block: int, cut: int) -> None:
    names = hash_blocks(tokens, block)
    cut = min(cut, len(names))
    parent = names[cut - 1] if cut else root_hash(block)
    assert names[:cut] + extend_hashes(parent, tokens[cut * block :], block) == names


@given(tokens=st.lists(st.integers(0, 999), min_size=8, max_size=40), position=st.integers(0, 39), salt=st.text(max_size=5))
def test_one_changed_token_changes_every_later_name(tokens: list[int], position: int, salt: str) -> None:
    position %= len(tokens)
    changed = list(tokens)
    changed[position] += 1
    before, after = hash_blocks(tokens, 4, salt), hash_blocks(changed, 4, salt)
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        assert (one == other) == (index < position // 4)


def test_salt_and_block_size_separate_caches() -> None:
    tokens = list(range(64))
    assert hash_blocks(tokens, 64, "a") != hash_blocks(tokens, 64, "b")
    assert hash_blocks(tokens, 32)[1] != hash_blocks(tokens, 64)[0]


@pytest.mark.parametrize("token", [-1, 2**32])
def test_ids_outside_32_bits_are_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        hash_blocks([token], 1)
