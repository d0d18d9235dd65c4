"""States that a sequence keeps for others: pinned against eviction, named when they are worth it, free in the end."""

from __future__ import annotations

import random

from prfaas.cache.hashing import hash_blocks
from prfaas.cache.hybrid import Demand, HybridCache
from prfaas.cache.lease import Lease
from prfaas.modelspec import KvRange
from prfaas.types import BlockHash
from tests.support.tiny_specs import tiny_spec

BLOCK = 4


def cache_of(slots: int) -> HybridCache:
    spec = tiny_spec("kimi", block_tokens=BLOCK).cache
    return HybridCache(spec, {"mla": 16, "kda": slots}, max_chunk_tokens=8)


def names(seed: int) -> list[BlockHash]:
    return hash_blocks(random.Random(seed).choices(range(1000), k=16), BLOCK)


def landed(cache: HybridCache, chain: list[BlockHash]) -> Lease:
    """A prompt of 14 tokens of which everything is here."""
    opened = cache.open(chain, 0, Demand(14, 14, 14, resume=False))
    assert opened is not None
    return opened.lease


def test_states_that_came_along_can_be_resumed_from() -> None:
    cache, chain = cache_of(slots=3), names(1)
    lease = landed(cache, chain)
    cache.snapshots.keep(lease, 12, computed=0)
    assert lease.kept is not None
    assert lease.places(KvRange("kda", 0, 2, 12, 12), 14) == (lease.kept.slots["kda"],)
    assert lease.places(KvRange("kda", 0, 2, 14, 14), 14) == (lease.slots["kda"],)
    assert lease.places(KvRange("kda", 0, 2, 8, 8), 14) == ()
    cache.publish(lease, chain, 14)
    cache.snapshots.settle_kept(lease, landed_tokens=12)
    assert cache.match(chain, 15) == 3
    cache.close(lease)
    assert cache.counts()["kda"].used == 0
    cache.check_integrity()


def test_states_that_did_not_come_are_not_named() -> None:
    for landed_tokens in (0, 8):
        cache, chain = cache_of(slots=3), names(1)
        lease = landed(cache, chain)
        cache.snapshots.keep(lease, 12, computed=0)
        cache.publish(lease, chain, 14)
        cache.snapshots.settle_kept(lease, landed_tokens=landed_tokens)
        assert cache.match(chain, 15) == 0
        assert cache.counts()["kda"].used == 1
        cache.close(lease)
        cache.check_integrity()


def test_kept_states_of_a_hit_stay_while_others_evict() -> None:
    cache, chain = cache_of(slots=3), names(1)
    first = landed(cache, chain)
    cache.snapshots.keep(first, 12, computed=0)
    cache.publish(first, chain, 14)
    cache.snapshots.settle_kept(first, landed_tokens=12)
    cache.close(first)
    opened = cache.open(chain, 3, Demand(14, 14, 12, resume=True))
    assert opened is not None
    cache.settle(opened.moves, ran=True)
    cache.snapshots.keep(opened.lease, 12, computed=12)
    assert opened.lease.kept is not None
    other = landed(cache, names(2))
    assert cache.open(names(3), 0, Demand(4, 4, 0, resume=True)) is None  # the third slot is not to be had
    assert cache.counts()["kda"].cached == 0
    cache.close(other)
    cache.close(opened.lease)
    assert cache.counts()["kda"].used == 0
    cache.check_integrity()


def test_without_room_nothing_is_kept() -> None:
    cache = cache_of(slots=1)
    lease = landed(cache, names(1))
    cache.snapshots.keep(lease, 12, computed=0)
    assert lease.kept is None
    cache.close(lease)
    cache.check_integrity()
