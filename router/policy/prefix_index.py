"""Which worker could reuse how much of a prompt: the global view of every worker's prefix cache.

Fed by cache events, asked once for each request. Groups are kept apart, because a hybrid model's hit needs them all
("Prefill-as-a-Service", arXiv:2604.15039, section 5): attention blocks over the whole prefix, sliding windows over
their last blocks, and a state snapshot at exactly its end. Workers with different model files, block sizes or group
layouts share nothing and form families. Knows nothing of requests, loads or the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prfaas.cache.hashing import HASH_BYTES, hash_blocks
from prfaas.errors import InvalidRequest
from prfaas.types import (
    BlockHash,
    CacheEvent,
    CacheEventKind,
    CacheGroupInfo,
    CacheTier,
    GenerationRequest,
    GroupKind,
    WorkerId,
)
from router.policy.block_table import NO_KEY, BlockTable, Keys, Places
from router.policy.holder_sets import WORD_BITS, HolderSets, Masks, SetNumbers

_FEW_SETS = 4096  # are not worth a sweep, which passes over all blocks,
_BLOCKS_PER_SET = 64  # nor is one more for so many blocks: it takes a tenth of their room
_ALL = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class Family:
    """Workers whose cache entries mean the same: one fingerprint, block size and set of groups."""

    fingerprint_digest: str
    block_tokens: int
    groups: tuple[CacheGroupInfo, ...]


PromptNames = Mapping[int, Keys]  # block size in tokens -> keys of a prompt's blocks, first block first


def name_prompt(request: GenerationRequest, block_sizes: Iterable[int]) -> dict[int, Keys]:
    """Keys of a prompt's reusable blocks for each block size. At least one token is always computed, so the last token
    names nothing; a request for prompt logprobs computes its whole prompt again and can reuse nothing."""
    if request.sampling.prompt_logprobs is not None:
        return {}
    usable = request.tokens[:-1]
    return {size: block_keys(hash_blocks(usable, size, request.cache_salt)) for size in block_sizes}


def block_keys(hashes: Sequence[BlockHash]) -> Keys:
    """Keys for the block table: the low 64 bits of each name, never zero.

    Raises:
        InvalidRequest: a name is not 16 bytes long.
    """
    if not {HASH_BYTES}.issuperset(map(len, hashes)):
        raise InvalidRequest(f"a block name must have {HASH_BYTES} bytes", param="hashes")
    words: NDArray[np.uint64] = np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64, copy=False)
    keys = words[::2].copy()
    keys[keys == NO_KEY] = 1
    return keys


def set_bits(word: int) -> Iterator[int]:
    """Positions of the set bits of a word, lowest first."""
    while word:
        low = word & -word
        yield low.bit_length() - 1
        word ^= low


class FamilyIndex:
    """The index of one family. Worker ids become bits; of each (group, tier) there is a column that says of every block
    which set of workers holds it."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._groups = {g.name: g for g in family.groups}
        self._covers = any(g.kind is GroupKind.FULL for g in family.groups)
        self._slides = any(g.kind is GroupKind.SLIDING for g in family.groups)
        self._blocks = BlockTable()
        self._sets = HolderSets()
        self._swept_sets = 0  # that were left when sets were last swept
        self._columns: dict[tuple[str, CacheTier], SetNumbers] = {}
        self._bits: dict[WorkerId, int] = {}
        self._workers: dict[int, WorkerId] = {}

    @property
    def empty(self) -> bool:
        return not self._bits

    @property
    def num_blocks(self) -> int:
        """Blocks with a number, those that nobody holds any more included."""
        return len(self._blocks)

    @property
    def num_sets(self) -> int:
        """Distinct sets of holders that are stored."""
        return len(self._sets)

    def add_worker(self, worker_id: WorkerId) -> None:
        bit = next(b for b in range(len(self._workers) + 1) if b not in self._workers)
        self._bits[worker_id], self._workers[bit] = bit, worker_id
        while bit >= self._sets.words * WORD_BITS:
            self._sets.widen(self._sets.words * 2)

    def remove_worker(self, worker_id: WorkerId) -> None:
        self.clear(worker_id)
        del self._workers[self._bits.pop(worker_id)]

    def clear(self, worker_id: WorkerId) -> None:
        """Forget all that a worker held. One pass over every column."""
        self._clear(self._bits[worker_id], list(self._columns))

    def apply(self, worker_id: WorkerId, event: CacheEvent) -> None:
        """Apply one event; groups that the family does not have are ignored, for they cannot be needed for a hit."""
        bit = self._bits[worker_id]
        if event.kind is CacheEventKind.CLEARED:
            self._clear(bit, [key for key in self._columns if key[1] is event.tier and event.group in ("", key[0])])
        elif event.group in self._groups and event.hashes:
            keys, stored = block_keys(event.hashes), event.kind is CacheEventKind.STORED
            if stored and not self._blocks.has_room(len(keys)):
                self._renumber(len(keys))
            places = self._blocks.number(keys) if stored else self._blocks.find(keys)
            if not stored:
                places = places[places >= 0]
            if len(places):
                column = self._column(event.group, event.tier)
                column[places] = self._sets.changed(column[places], bit, member=stored)
        if len(self._sets) > 2 * self._swept_sets + max(_FEW_SETS, len(self._blocks) // _BLOCKS_PER_SET):
            self._sweep()

    def match(self, keys: Keys) -> dict[WorkerId, int]:
        """Usable prefix of each worker that has one, in tokens. `keys` name the prompt's blocks, first block first."""
        places = self._blocks.find_prefix(keys) if self._covers else self._blocks.find(keys)
        if not self._columns or not len(places):
            return {}
        held = {key: self._column(*key).take(places) for key in self._columns}
        if not self._covers:
            for numbers in held.values():
                numbers[places < 0] = 0
        ends = np.arange(1, len(places) + 1)
        if not self._slides:
            ends = _runs(held.values(), len(places))
            held = {key: numbers[ends - 1] for key, numbers in held.items()}
        valid = np.full((len(ends), self._sets.words), _ALL)
        for group in self.family.groups:
            present = self._presence(group.name, held, len(ends))
            if group.kind is GroupKind.FULL:
                np.bitwise_and.accumulate(present, axis=0, out=present)  # caches may have holes
            elif group.kind is GroupKind.SLIDING:
                present = self._window(present, group)
            valid &= present
        return self._longest(valid, ends)

    def _presence(self, group: str, held: Mapping[tuple[str, CacheTier], SetNumbers], num_rows: int) -> Masks:
        """Who holds the group's part of each row's blocks, in whichever tier."""
        masks = [self._sets.masks(held[group, tier]) for tier in CacheTier if (group, tier) in held]
        if not masks:
            return np.zeros((num_rows, self._sets.words), dtype=np.uint64)
        for other in masks[1:]:
            masks[0] |= other
        return masks[0]

    def _window(self, present: Masks, group: CacheGroupInfo) -> Masks:
        """Row i: workers that hold every block a query after block i may still read (doubling a running AND)."""
        window_tokens = group.window_tokens or 1
        wanted = -(-(window_tokens - 1) // self.family.block_tokens)
        if wanted == 0:
            return np.full_like(present, _ALL)
        covered = 1
        while covered < min(wanted, len(present)):
            step = min(covered, wanted - covered)
            shifted = present[:-step].copy()
            present[step:] &= shifted
            covered += step
        return present

    def _longest(self, valid: Masks, ends: Places) -> dict[WorkerId, int]:
        """The last row in which each worker's bit is set, in tokens. `ends`: blocks up to the end of each row."""
        last_of = valid.copy()
        last_of[:-1] &= ~valid[1:]  # a worker's last row is among those after which its bit is not set
        flat, words = last_of.reshape(-1), self._sets.words
        seen = [0] * words
        found: dict[WorkerId, int] = {}
        for at in np.flatnonzero(flat)[::-1].tolist():
            row, word = divmod(at, words)
            last = int(flat[at]) & ~seen[word]
            seen[word] |= last
            for bit in set_bits(last):
                worker_id = self._workers.get(word * WORD_BITS + bit)
                if worker_id is not None:
                    found[worker_id] = int(ends[row]) * self.family.block_tokens
        return found

    def _column(self, group: str, tier: CacheTier) -> SetNumbers:
        """The sets of every block, in a column that has at least as many places as there are blocks."""
        column = self._columns.get((group, tier))
        if column is None or len(column) < len(self._blocks):
            grown = np.zeros(len(self._blocks) * 3 // 2, dtype=np.int32)
            if column is not None:
                grown[: len(column)] = column
            column = self._columns[group, tier] = grown
        return column

    def _clear(self, bit: int, columns: Sequence[tuple[str, CacheTier]]) -> None:
        without = self._sets.without(bit)
        for key in columns:
            self._columns[key] = without.take(self._columns[key])

    def _renumber(self, more: int) -> None:
        """Drop blocks that nobody holds, and make room for `more`."""
        columns = {key: self._column(*key)[: len(self._blocks)] for key in self._columns}
        alive = np.zeros(len(self._blocks), dtype=np.bool_)
        for column in columns.values():
            alive |= column != 0
        self._columns = {key: column[alive] for key, column in columns.items()}
        self._blocks.renumber(alive, more)

    def _sweep(self) -> None:
        """Drop sets that no block refers to."""
        used = np.zeros(len(self._sets), dtype=np.bool_)
        for column in self._columns.values():
            used[column] = True
        numbers = self._sets.keep(used)
        self._columns = {key: numbers.take(column) for key, column in self._columns.items()}
        self._swept_sets = len(self._sets)


def _runs(columns: Iterable[SetNumbers], num_blocks: int) -> Places:
    """Ends of the runs of blocks between which no column changes; the last is `num_blocks`."""
    changes = np.zeros(num_blocks, dtype=np.bool_)
    changes[-1] = True
    for numbers in columns:
        changes[:-1] |= numbers[1:] != numbers[:-1]
    return np.flatnonzero(changes) + 1


@dataclass(slots=True)
class _Feed:
    """One worker's event stream. `expected` is None until a snapshot has been applied."""

    family: FamilyIndex
    expected: int | None = None


class PrefixIndex:
    """All families, and the sequence numbers of every worker's event stream."""

    def __init__(self) -> None:
        self._families: dict[Family, FamilyIndex] = {}
        self._feeds: dict[WorkerId, _Feed] = {}

    def add_worker(self, worker_id: WorkerId, family: Family) -> None:
        """Start a worker's stream, forgetting an earlier one. Nothing is believed before its first snapshot."""
        self.remove_worker(worker_id)
        index = self._families.setdefault(family, FamilyIndex(family))
        index.add_worker(worker_id)
        self._feeds[worker_id] = _Feed(index)

    def remove_worker(self, worker_id: WorkerId) -> None:
        """Idempotent. A family without workers is dropped with its tables."""
        feed = self._feeds.pop(worker_id, None)
        if feed is None:
            return
        feed.family.remove_worker(worker_id)
        if feed.family.empty:
            del self._families[feed.family.family]

    def apply(self, worker_id: WorkerId, events: Iterable[CacheEvent]) -> bool:
        """Apply events in order. False: a gap was found, a snapshot is due, and what is known stays until it comes
        (a stale promise costs time, an empty index costs every hit)."""
        feed = self._feeds[worker_id]
        for event in events:
            if feed.expected is None:
                return False
            if event.seq < feed.expected:
                continue
            if event.seq > feed.expected:
                feed.expected = None
                return False
            feed.family.apply(worker_id, event)
            feed.expected += 1
        return feed.expected is not None

    def replace(
        self,
        worker_id: WorkerId,
        next_seq: int,
        contents: Iterable[CacheEvent],
        *,
        continued: bool = False,
        unfinished: bool = False,
    ) -> None:
        """Apply a snapshot, or a page of one: `contents` is what the worker holds, and its next event has number
        `next_seq`. A page that is `continued` adds to those before it; events are believed again after the one that is
        not `unfinished`."""
        feed = self._feeds[worker_id]
        if not continued:
            feed.family.clear(worker_id)
        for event in contents:
            feed.family.apply(worker_id, event)
        feed.expected = None if unfinished else next_seq

    def families(self) -> tuple[FamilyIndex, ...]:
        return tuple(self._families.values())

    def match(self, names: PromptNames) -> dict[WorkerId, int]:
        """Usable prefix of each worker in tokens, for the workers that have one."""
        found: dict[WorkerId, int] = {}
        for family, index in self._families.items():
            keys = names.get(family.block_tokens)
            if keys is not None:
                found.update(index.match(keys))
        return found
