"""The prefix index against a naive model: dictionaries and loops over the definition of a usable hit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.cache.hashing import hash_blocks
from prfaas.errors import InvalidRequest
from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheGroupInfo, CacheTier, GroupKind, SamplingParams, WorkerId
from router.policy.prefix_index import Family, FamilyIndex, PrefixIndex, block_keys, name_prompt
from tests.support.router_fleet import generation_request

BLOCK = 16
FULL = CacheGroupInfo("attn", GroupKind.FULL, 1)
STATE = CacheGroupInfo("kda", GroupKind.STATE, 1)
STORED, REMOVED, CLEARED = CacheEventKind.STORED, CacheEventKind.REMOVED, CacheEventKind.CLEARED
W1, W2 = WorkerId("w1"), WorkerId("w2")


def names_of(num_blocks: int, salt: int = 0) -> list[BlockHash]:
    return hash_blocks([salt] * (num_blocks * BLOCK), BLOCK)


def event(
    kind: CacheEventKind, hashes: Sequence[BlockHash], *, seq: int = 0, group: str = "attn", tier: CacheTier = CacheTier.DEVICE
) -> CacheEvent:
    return CacheEvent(seq, kind, group, tier, tuple(hashes))


def family_index(*groups: CacheGroupInfo, workers: Sequence[WorkerId] = (W1,)) -> FamilyIndex:
    index = FamilyIndex(Family("f", BLOCK, groups))
    for worker in workers:
        index.add_worker(worker)
    return index


class Model:
    """What the index must answer, straight from the definition."""

    def __init__(self, groups: Sequence[CacheGroupInfo]) -> None:
        self.groups = groups
        self.held: set[tuple[WorkerId, str, CacheTier, BlockHash]] = set()

    def has(self, worker: WorkerId, group: str, name: BlockHash) -> bool:
        return any((worker, group, tier, name) in self.held for tier in CacheTier)

    def usable(self, worker: WorkerId, names: Sequence[BlockHash], end: int) -> bool:
        for group in self.groups:
            if group.kind is GroupKind.FULL:
                needed = range(end)
            elif group.kind is GroupKind.STATE:
                needed = range(end - 1, end)
            else:
                first_token = max(0, end * BLOCK - ((group.window_tokens or 1) - 1))
                needed = range(math.floor(first_token / BLOCK), end) if first_token < end * BLOCK else range(0)
            if not all(self.has(worker, group.name, names[i]) for i in needed):
                return False
        return True

    def match(self, workers: Sequence[WorkerId], names: Sequence[BlockHash]) -> dict[WorkerId, int]:
        found = {}
        for worker in workers:
            ends = [end for end in range(1, len(names) + 1) if self.usable(worker, names, end)]
            if ends:
                found[worker] = max(ends) * BLOCK
        return found


windows = [CacheGroupInfo(f"swa{w}", GroupKind.SLIDING, 1, w) for w in (2, 17, 40, 65, 1000)]
group_sets = st.lists(st.sampled_from([FULL, STATE, *windows]), min_size=1, max_size=3, unique_by=lambda g: g.name)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), groups=group_sets)
def test_a_match_is_the_longest_prefix_that_every_group_can_use(data: st.DataObject, groups: list[CacheGroupInfo]) -> None:
    """Pieces of chains that branch, stored and removed in any order by many workers, which clear tiers, leave and return."""
    workers = [WorkerId(f"w{i}") for i in range(data.draw(st.sampled_from([1, 3, 70])))]
    index, model = family_index(*groups, workers=workers), Model(groups)
    trunk = names_of(90)
    chains = [trunk, names_of(6, 1), trunk[:40] + names_of(30, 2), trunk[:41] + names_of(3, 3)]
    steps = st.tuples(
        st.sampled_from(workers),
        st.sampled_from(groups),
        st.sampled_from(CacheTier),
        st.sampled_from([STORED, STORED, STORED, REMOVED, REMOVED, CLEARED, None]),
    )
    for worker, group, tier, kind in data.draw(st.lists(steps, max_size=25)):
        if kind is None:
            index.remove_worker(worker)
            index.add_worker(worker)
            model.held = {entry for entry in model.held if entry[0] != worker}
            continue
        chain = data.draw(st.sampled_from(chains))
        start = data.draw(st.integers(0, len(chain) - 1) | st.just(0))
        stop = data.draw(st.integers(start, len(chain)) | st.just(len(chain)))
        part = [] if kind is CLEARED else chain[start:stop]
        if data.draw(st.booleans()):
            part = part[::-1]
        index.apply(worker, event(kind, part, group=group.name, tier=tier))
        entries = {(worker, group.name, tier, name) for name in part}
        if kind is CLEARED:
            entries = {entry for entry in model.held if entry[:3] == (worker, group.name, tier)}
        model.held = model.held | entries if kind is STORED else model.held - entries
    for chain in chains:
        assert index.match(block_keys(chain)) == model.match(workers, chain)


def test_a_hybrid_hit_needs_attention_blocks_and_a_snapshot_at_its_end() -> None:
    index, names = family_index(FULL, STATE), names_of(10)
    index.apply(W1, event(STORED, names))
    assert index.match(block_keys(names)) == {}
    index.apply(W1, event(STORED, [names[3], names[7]], group="kda"))
    assert index.match(block_keys(names)) == {W1: 8 * BLOCK}
    index.apply(W1, event(REMOVED, [names[5]]))
    assert index.match(block_keys(names)) == {W1: 4 * BLOCK}


def test_a_window_of_one_token_needs_no_blocks() -> None:
    index, names = family_index(FULL, CacheGroupInfo("swa", GroupKind.SLIDING, 1, 1)), names_of(3)
    index.apply(W1, event(STORED, names))
    assert index.match(block_keys(names)) == {W1: 3 * BLOCK}


def test_a_block_that_moves_to_the_host_tier_is_still_a_hit() -> None:
    index, names = family_index(FULL), names_of(3)
    index.apply(W1, event(STORED, names))
    index.apply(W1, event(STORED, names[1:], tier=CacheTier.HOST))
    index.apply(W1, event(REMOVED, names[1:]))
    assert index.match(block_keys(names)) == {W1: 3 * BLOCK}
    index.apply(W1, event(CLEARED, (), group="", tier=CacheTier.HOST))
    assert index.match(block_keys(names)) == {W1: BLOCK}


def test_a_worker_that_leaves_takes_its_entries_along_even_when_its_place_is_taken() -> None:
    index, names = family_index(FULL, workers=(W1, W2)), names_of(3)
    index.apply(W1, event(STORED, names))
    index.apply(W2, event(STORED, names[:1]))
    index.remove_worker(W1)
    index.add_worker(WorkerId("w3"))
    assert index.match(block_keys(names)) == {W2: BLOCK}


def test_events_of_groups_outside_the_family_change_nothing() -> None:
    index, names = family_index(FULL), names_of(2)
    index.apply(W1, event(STORED, names, group="other"))
    assert index.match(block_keys(names)) == {}
    assert index.num_blocks == 0


def test_a_name_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="16 bytes"):
        block_keys([BlockHash(b"short")])


class TestFeed:
    """Sequence numbers, gaps and snapshots."""

    def index(self) -> PrefixIndex:
        index = PrefixIndex()
        index.add_worker(W1, Family("f", BLOCK, (FULL,)))
        return index

    def hit(self, index: PrefixIndex, names: Sequence[BlockHash]) -> int:
        return index.match({BLOCK: block_keys(names)}).get(W1, 0)

    def test_nothing_is_believed_before_a_snapshot(self) -> None:
        index, names = self.index(), names_of(2)
        assert not index.apply(W1, [event(STORED, names, seq=0)])
        assert self.hit(index, names) == 0
        index.replace(W1, 1, [event(STORED, names)])
        assert self.hit(index, names) == 2 * BLOCK
        assert index.apply(W1, [])

    def test_events_that_the_snapshot_contains_are_skipped(self) -> None:
        index, names = self.index(), names_of(2)
        index.replace(W1, 5, [event(STORED, names)])
        assert index.apply(W1, [event(REMOVED, names, seq=4), event(REMOVED, names[1:], seq=5)])
        assert self.hit(index, names) == BLOCK

    def test_a_gap_asks_for_a_snapshot_and_keeps_the_old_picture_until_then(self) -> None:
        index, names = self.index(), names_of(3)
        index.replace(W1, 0, [event(STORED, names)])
        assert not index.apply(W1, [event(REMOVED, names, seq=1)])
        assert not index.apply(W1, [event(REMOVED, names, seq=2)])
        assert self.hit(index, names) == 3 * BLOCK
        index.replace(W1, 3, [event(STORED, names[:1])])
        assert self.hit(index, names) == BLOCK
        assert index.apply(W1, [event(STORED, names, seq=3)])
        assert self.hit(index, names) == 3 * BLOCK

    def test_a_snapshot_in_pages_counts_as_it_comes_and_is_in_step_after_the_last(self) -> None:
        index, names = self.index(), names_of(4)
        index.replace(W1, 0, [event(STORED, names)])
        index.replace(W1, 7, [event(STORED, names[:1])], unfinished=True)
        assert self.hit(index, names) == BLOCK
        assert not index.apply(W1, [event(STORED, names, seq=7)])
        index.replace(W1, 7, [event(STORED, names[1:2])], continued=True, unfinished=True)
        index.replace(W1, 7, [event(STORED, names[2:3])], continued=True)
        assert self.hit(index, names) == 3 * BLOCK
        assert index.apply(W1, [event(STORED, names[3:], seq=7)])
        assert self.hit(index, names) == 4 * BLOCK

    def test_a_new_start_of_a_worker_forgets_the_old_one(self) -> None:
        index, names = self.index(), names_of(2)
        index.replace(W1, 0, [event(STORED, names)])
        index.add_worker(W1, Family("f2", BLOCK, (FULL,)))
        assert self.hit(index, names) == 0
        assert len(index.families()) == 1


def test_a_prompt_is_named_without_its_last_token() -> None:
    request = generation_request(2 * BLOCK)
    assert len(name_prompt(request, [BLOCK])[BLOCK]) == 1
    assert len(name_prompt(generation_request(2 * BLOCK + 1), [BLOCK])[BLOCK]) == 2
    salted = name_prompt(generation_request(2 * BLOCK + 1, cache_salt="a"), [BLOCK])[BLOCK]
    assert not np.array_equal(salted, name_prompt(generation_request(2 * BLOCK + 1), [BLOCK])[BLOCK])


def test_prompt_logprobs_promise_no_reuse() -> None:
    request = generation_request(100, sampling=SamplingParams(prompt_logprobs=1))
    assert name_prompt(request, [BLOCK]) == {}


def test_an_index_under_churn_forgets_blocks_and_sets_that_nobody_refers_to() -> None:
    workers = [WorkerId(f"w{i}") for i in range(30)]
    index, rng = family_index(FULL, STATE, workers=workers), np.random.default_rng(1)
    kept = names_of(1500)
    for length, worker in enumerate(workers[:20], 1):
        index.apply(worker, event(STORED, kept[: 70 * length]))
        index.apply(worker, event(STORED, kept[70 * length - 1 : 70 * length], group="kda"))
    for _ in range(40):
        raw = rng.bytes(16 * 2000)
        names = [BlockHash(raw[at : at + 16]) for at in range(0, len(raw), 16)]
        for worker in workers:
            mine = [names[i] for i in sorted(rng.choice(2000, 300, replace=False))]
            index.apply(worker, event(STORED, mine))
        for worker in workers:
            index.apply(worker, event(REMOVED, names))
    assert index.num_blocks < 20_000
    assert index.num_sets < 30_000
    assert index.match(block_keys(kept)) == {worker: 70 * n * BLOCK for n, worker in enumerate(workers[:20], 1)}


def test_a_chain_in_many_pieces_is_found_as_well_as_one_in_one() -> None:
    """Other blocks come between those of a chain, as they do while it is decoded, so that none stands behind the last."""
    index, names = family_index(FULL, workers=(W1, W2)), names_of(300)
    for at, name in enumerate(names):
        index.apply(W1, event(STORED, [name]))
        index.apply(W2, event(STORED, names_of(2, salt=1 + at)))
    assert index.match(block_keys(names)) == {W1: 300 * BLOCK}
    index.apply(W2, event(STORED, names))
    index.apply(W1, event(REMOVED, [names[200]]))
    assert index.match(block_keys(names)) == {W1: 200 * BLOCK, W2: 300 * BLOCK}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_feed_with_gaps_and_snapshots_ends_where_the_worker_is(data: st.DataObject) -> None:
    """Events get lost; whenever one is missed the worker is asked for what it holds, and after that both agree."""
    index, chains = PrefixIndex(), [names_of(30), names_of(12, 1)]
    held: dict[WorkerId, set[BlockHash]] = {W1: set(), W2: set()}
    seqs = dict.fromkeys(held, 0)
    for worker in held:
        index.add_worker(worker, Family("f", BLOCK, (FULL,)))
    for worker, kind, arrives in data.draw(
        st.lists(st.tuples(st.sampled_from([W1, W2]), st.sampled_from([STORED, STORED, REMOVED]), st.booleans()), max_size=30)
    ):
        chain = data.draw(st.sampled_from(chains))
        start = data.draw(st.integers(0, len(chain) - 1))
        part = chain[start : data.draw(st.integers(start + 1, len(chain)))]
        held[worker] = held[worker] | set(part) if kind is STORED else held[worker] - set(part)
        if arrives and not index.apply(worker, [event(kind, part, seq=seqs[worker])]):
            index.replace(worker, seqs[worker] + 1, [event(STORED, list(held[worker]))])
        seqs[worker] += 1
    for worker in held:
        if not index.apply(worker, [event(REMOVED, [chains[0][0]], seq=seqs[worker] + 1)]):
            index.replace(worker, seqs[worker], [event(STORED, [name]) for name in held[worker]])
    for chain in chains:
        lengths = {w: next((i for i, name in enumerate(chain) if name not in held[w]), len(chain)) for w in held}
        assert index.match({BLOCK: block_keys(chain)}) == {w: n * BLOCK for w, n in lengths.items() if n}
