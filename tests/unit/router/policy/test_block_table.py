"""The block table against a dictionary, and the sets of holders against Python's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy.block_table import BlockTable
from router.policy.holder_sets import HolderSets

KEYS = st.lists(st.integers(0, 60) | st.integers(2**64 - 40, 2**64 - 1) | st.integers(2**32, 2**32 + 9), max_size=1500)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=8))
def test_names_keep_their_numbers_until_they_are_renumbered(steps: list[tuple[bool, list[int]]]) -> None:
    """Keys crowd into few buckets at both ends of the table, so that looking goes on behind its end."""
    table, model = BlockTable(), list[int]()
    for renumbers, numbers in steps:
        keys = np.array([number or 1 for number in numbers], dtype=np.uint64)
        if renumbers or not table.has_room(len(keys)):
            alive = np.array([key % 3 > 0 for key in model], dtype=np.bool_)
            table.renumber(alive, len(keys))
            model = [key for key in model if key % 3]
        places = table.number(keys)
        model += dict.fromkeys(key for key in keys.tolist() if key not in set(model))
        assert [model[place] for place in places.tolist()] == keys.tolist()
        assert len(table) == len(model)
    probe = np.array([*range(1, 61), *range(2**64 - 40, 2**64)], dtype=np.uint64)
    known = {key: place for place, key in enumerate(model)}
    expected = [known.get(key, -1) for key in probe.tolist()]
    assert table.find(probe).tolist() == expected
    ends = expected.index(-1) if -1 in expected else len(expected)
    assert table.find_prefix(probe).tolist() == expected[:ends]


def test_a_chain_is_found_in_one_piece_in_many_and_not_at_all() -> None:
    rng = np.random.default_rng(1)
    chain, other = (rng.integers(1, 2**64, 3000, dtype=np.uint64) for _ in range(2))
    table = BlockTable()
    table.renumber(np.zeros(0, dtype=np.bool_), 10_000)
    table.number(chain[:1000])
    for at in range(1000, 1100):  # a piece each
        table.number(other[at : at + 1])
        table.number(chain[at : at + 1])
    for keys in (chain[:900], chain[:1100], chain, chain[500:1050], other[:5]):
        known = [int(np.flatnonzero(chain[:1100] == key)[0]) if key in chain[:1100] else -1 for key in keys]
        places = table.find(keys)
        assert (places >= 0).tolist() == [place >= 0 for place in known]
        assert len(table.find_prefix(keys)) == sum(place >= 0 for place in known)
        numbered = [table.find(keys[i : i + 1])[0] for i in range(len(keys))]
        assert places.tolist() == numbered


MEMBERS = st.lists(st.tuples(st.booleans(), st.integers(0, 130), st.lists(st.integers(0, 11), min_size=1, max_size=12)))


@settings(max_examples=100, deadline=None)
@given(MEMBERS, st.integers(0, 130))
def test_sets_have_the_members_that_were_put_into_them(steps: list[tuple[bool, int, list[int]]], gone: int) -> None:
    sets, numbers, model = HolderSets(), np.zeros(12, dtype=np.int32), [set[int]() for _ in range(12)]
    sets.widen(4)
    for member, bit, which in steps:
        numbers[which] = sets.changed(numbers[which], bit, member=member)
        for at in set(which):
            (model[at].add if member else model[at].discard)(bit)
    numbers = sets.without(gone)[numbers]
    used = np.zeros(len(sets), dtype=np.bool_)
    used[numbers] = True
    numbers = sets.keep(used)[numbers]
    for mask, members in zip(sets.masks(numbers), model, strict=True):
        assert {bit for bit in range(256) if int(mask[bit // 64]) >> (bit % 64) & 1} == members - {gone}
    assert len(sets) <= len({frozenset(members - {gone}) for members in model}) + 1
