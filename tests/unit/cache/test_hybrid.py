"""What a hybrid cache promises, keeps and gives up, example by example. Random lives are in the engine's tests."""

from __future__ import annotations

import random

import pytest

from prfaas.cache.events import EventLog
from prfaas.cache.hashing import hash_blocks
from prfaas.cache.hybrid import Demand, HostHit, HybridCache
from prfaas.cache.lease import ABSENT, Lease
from prfaas.types import BlockHash, CacheEventKind, CacheTier
from tests.support.tiny_specs import tiny_spec

BLOCK = 4


def cache_of(shape: str, *, blocks: int = 16, slots: int = 4, host: int = 0, reuse: bool = True) -> HybridCache:
    spec = tiny_spec(shape, block_tokens=BLOCK).cache
    sizes = {g.name: slots if g.is_state else blocks for g in spec.groups}
    hosts = dict.fromkeys(sizes, host)
    return HybridCache(spec, sizes, max_chunk_tokens=8, reuse=reuse, host_sizes=hosts)


def names(length: int, seed: int = 0) -> list[BlockHash]:
    return hash_blocks(random.Random(seed).choices(range(1000), k=length), BLOCK)


def fill(cache: HybridCache, chain: list[BlockHash], num_tokens: int, *, snapshots: tuple[int, ...] = ()) -> Lease:
    """Compute a prompt from nothing, eight tokens a step, with snapshots after the given positions."""
    opened = cache.open(chain, 0, Demand(num_tokens, num_tokens, 0, resume=True))
    assert opened is not None
    at = 0
    while at < num_tokens:
        at = min([at + 8, num_tokens, *(p for p in snapshots if p > at)])
        assert cache.grow(opened.lease, at)
        snapshot = cache.snapshots.prepare(opened.lease, at, rolling=False) if at in snapshots else None
        cache.publish(opened.lease, chain, at)
        if snapshot is not None:
            cache.snapshots.commit(opened.lease, snapshot, at)
        cache.slide(opened.lease, at)
        cache.check_integrity()
    return opened.lease


def test_a_hit_leaves_at_least_one_token_to_compute() -> None:
    cache, chain = cache_of("dense"), names(16)
    cache.close(fill(cache, chain, 16))
    assert cache.match(chain, 17) == 4
    assert cache.match(chain, 16) == 3
    assert cache.match(chain, 4) == 0


def test_states_are_reusable_only_where_they_were_taken() -> None:
    cache, chain = cache_of("kimi"), names(32)
    cache.close(fill(cache, chain, 30, snapshots=(8, 20)))
    assert cache.match(chain, 31) == 5
    assert cache.match(chain, 20) == 2
    assert cache.match(chain, 8) == 0
    assert cache.match_entries(chain, 31) == 7  # entries are there though no state is


def test_without_its_snapshot_a_prefix_is_no_hit_and_goes_first() -> None:
    cache = cache_of("kimi", blocks=10, slots=2)
    first, second = names(13, 1), names(13, 2)
    cache.close(fill(cache, first, 13, snapshots=(12,)))
    cache.close(fill(cache, second, 13, snapshots=(12,)))
    assert cache.match(first, 13) == 0  # the second snapshot took the only spare slot
    assert cache.match(second, 13) == 3
    cache.close(fill(cache, names(16, 3), 16))
    assert cache.match(second, 13) == 3  # what nobody could resume from went before it
    cache.check_integrity()


def test_a_window_needs_only_its_own_blocks() -> None:
    cache, chain = cache_of("gemma"), names(32)
    lease = fill(cache, chain, 32)
    assert lease.tables["swa"][:6] == [ABSENT] * 6
    assert cache.counts()["swa"].used == 2
    cache.close(lease)
    assert cache.match(chain, 33) == 8
    assert cache.match(chain, 20) == 4  # the blocks it slid past are still cached


def test_an_evicted_window_takes_the_hit_with_it() -> None:
    cache, chain = cache_of("gemma", blocks=8), names(24)
    cache.close(fill(cache, chain, 24))
    other = fill(cache, names(9, 5), 9)
    assert cache.match(chain, 25) < 6
    cache.close(other)
    cache.check_integrity()


def test_open_is_all_or_nothing() -> None:
    cache, chain = cache_of("everything", blocks=8, slots=3), names(40)
    lease = fill(cache, chain, 20, snapshots=(16,))
    before = cache.counts()
    assert cache.open(names(40, 7), 0, Demand(20, 20, 0, resume=True)) is None
    assert cache.counts() == before
    cache.close(lease)
    assert cache.open(names(40, 7), 0, Demand(20, 20, 0, resume=True, spare_blocks=4)) is None
    assert cache.open(names(40, 7), 0, Demand(20, 20, 0, resume=True)) is not None


def test_too_small_a_pool_is_named() -> None:
    cache = cache_of("everything", blocks=8)
    assert cache.fits_alone(32) is None
    assert cache.fits_alone(33) == ("mla", 9, 8)
    assert cache_of("kimi", slots=0).fits_alone(1) == ("kda", 1, 0)


def test_forks_share_full_blocks_and_copy_the_rest() -> None:
    cache, chain = cache_of("everything"), names(10)
    lease = fill(cache, chain, 10)
    fork = cache.fork(lease, 10, 20)
    assert fork is not None
    assert fork.lease.tables["mla"][:2] == lease.tables["mla"][:2]
    assert fork.lease.tables["mla"][2] != lease.tables["mla"][2]
    assert {move.group for move in fork.moves} == {"mla", "kda", "swa", "wide"}
    cache.close(lease)
    for move in fork.moves:  # the source stays until the copy has run
        assert move.source not in [b for table in fork.lease.tables.values() for b in table[-1:]] or move.group == "kda"
    used = cache.counts()["mla"].used
    cache.settle(fork.moves, ran=True)
    assert cache.counts()["mla"].used == used - 1
    cache.close(fork.lease)
    assert all(counts.used == 0 for counts in cache.counts().values())


def test_a_landed_window_block_that_is_half_empty_is_never_shared() -> None:
    cache, chain = cache_of("gemma"), names(12)
    opened = cache.open(chain, 0, Demand(10, 12, 10, resume=False))
    assert opened is not None
    assert cache.grow(opened.lease, 10)  # its window starts at 5, in the middle of block 1
    cache.publish(opened.lease, chain, 10)
    assert cache.match_entries(chain, 10) == 1  # block 0 lies before the window, block 1 is not whole
    cache.close(opened.lease)
    cache.check_integrity()


def test_without_reuse_nothing_is_kept() -> None:
    cache, chain = cache_of("kimi", reuse=False), names(20)
    cache.close(fill(cache, chain, 20, snapshots=(16,)))
    assert cache.match(chain, 21) == 0
    assert all(counts.cached == 0 for counts in cache.counts().values())
    assert cache.take_events() == ()


def test_clearing_forgets_but_leaves_running_sequences_their_blocks() -> None:
    cache, chain = cache_of("kimi", host=8), names(20)
    lease = fill(cache, chain, 16, snapshots=(16,))
    cache.clear()
    assert cache.match(chain, 21) == 0
    assert cache.counts()["mla"].used == 4
    assert cache.take_events()[-1].kind is CacheEventKind.CLEARED
    assert cache.snapshot_events()[1] == ()
    cache.settle(cache.take_saves(), ran=False)
    cache.close(lease)
    cache.check_integrity()


def test_evicted_prefixes_come_back_from_host_memory() -> None:
    cache, chain = cache_of("everything", blocks=8, slots=2, host=32), names(24)
    lease = fill(cache, chain, 24, snapshots=(20,))
    saves = cache.take_saves()
    assert {save.target_tier for save in saves} == {CacheTier.HOST}
    cache.settle(saves, ran=True)
    cache.close(lease)
    other = fill(cache, names(30, 8), 30)
    cache.settle(cache.take_saves(), ran=True)
    cache.close(other)
    assert cache.match(chain, 25) == 0
    assert cache.match_host(chain, 25) == HostHit(5, 5 * 2 * 88 + 2 * 30 + 2 * 2 * 64 + 3 * 48)
    restored = cache.restore(chain, 5, Demand(25, 28, 20, resume=True))
    assert restored is not None
    fetched = [(move.group, move.source_tier) for move in restored.moves]
    assert fetched.count(("mla", CacheTier.HOST)) == 5
    assert fetched.count(("kda", CacheTier.HOST)) == 1
    cache.settle(restored.moves, ran=True)
    cache.close(restored.lease)
    cache.check_integrity()


def test_a_copy_that_never_ran_is_not_found_in_host_memory() -> None:
    cache, chain = cache_of("dense", host=8), names(8)
    cache.close(fill(cache, chain, 8))
    cache.settle(cache.take_saves(), ran=False)
    assert cache.match_host(chain, 9) is None
    cache.check_integrity()


def test_lost_events_leave_a_gap_in_the_numbers() -> None:
    log = EventLog(max_events=3)
    for _ in range(5):
        log.add(CacheEventKind.STORED, "mla", [BlockHash(b"x")])
    assert [event.seq for event in log.take()] == [2, 3, 4]
    log.add(CacheEventKind.REMOVED, "mla", [BlockHash(b"x")])
    assert [event.seq for event in log.take()] == [5]


@pytest.mark.parametrize("shape", ["dense", "kimi", "gemma", "everything", "recurrent"])
def test_a_snapshot_rebuilds_what_events_told(shape: str) -> None:
    cache = cache_of(shape, host=6)
    for seed in range(6):
        lease = fill(cache, names(30, seed), 20 + seed, snapshots=(12, 16))
        cache.settle(cache.take_saves(), ran=True)
        cache.close(lease)
    view: set[tuple[str, str, BlockHash]] = set()
    for event in cache.take_events():
        change = {(event.tier.value, event.group, name) for name in event.hashes}
        view = view | change if event.kind is CacheEventKind.STORED else view - change
    next_seq, stored = cache.snapshot_events()
    assert {(event.tier.value, event.group, name) for event in stored for name in event.hashes} == view
    assert view
    cache.clear()
    assert cache.take_events()[0].seq == next_seq
