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
from router.policy.holder_table import NO_KEY, WORD_BITS, HolderTable, Keys, Masks

_FIRST_LOOK_BLOCKS = 64
_LOOK_FURTHER = 8  # each further look takes so many times as many blocks
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
    """Keys for the holder table: the low 64 bits of each name, never zero.

    Raises:
        InvalidRequest: a name is not 16 bytes long.
    """
    if any(len(name) != HASH_BYTES for name in hashes):
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
    """The index of one family. Worker ids become bits; each (group, tier) has a table of its own."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._groups = {g.name: g for g in family.groups}
        self._tables: dict[tuple[str, CacheTier], HolderTable] = {}
        self._bits: dict[WorkerId, int] = {}
        self._workers: dict[int, WorkerId] = {}
        self._words = 1

    @property
    def empty(self) -> bool:
        return not self._bits

    @property
    def num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables.values())

    @property
    def num_keys(self) -> int:
        return sum(table.num_keys for table in self._tables.values())

    def add_worker(self, worker_id: WorkerId) -> None:
        bit = next(b for b in range(len(self._workers) + 1) if b not in self._workers)
        self._bits[worker_id], self._workers[bit] = bit, worker_id
        while bit >= self._words * WORD_BITS:
            self._words *= 2
            for table in self._tables.values():
                table.widen(self._words)

    def remove_worker(self, worker_id: WorkerId) -> None:
        self.clear(worker_id)
        del self._workers[self._bits.pop(worker_id)]

    def clear(self, worker_id: WorkerId) -> None:
        for table in self._tables.values():
            table.clear(self._bits[worker_id])

    def apply(self, worker_id: WorkerId, event: CacheEvent) -> None:
        """Apply one event; groups that the family does not have are ignored, for they cannot be needed for a hit."""
        bit = self._bits[worker_id]
        if event.kind is CacheEventKind.CLEARED:
            for (group, tier), table in self._tables.items():
                if tier is event.tier and event.group in ("", group):
                    table.clear(bit)
            return
        if event.group not in self._groups:
            return
        table = self._table(event.group, event.tier)
        if event.kind is CacheEventKind.STORED:
            table.add(block_keys(event.hashes), bit)
        else:
            table.discard(block_keys(event.hashes), bit)

    def match(self, keys: Keys) -> dict[WorkerId, int]:
        """Usable prefix of each worker that has one, in tokens. `keys` name the prompt's blocks, first block first."""
        if not self._tables or not len(keys):
            return {}
        valid = self._covered(keys)
        for group in self.family.groups:
            if group.kind is not GroupKind.FULL and len(valid):
                present = self._presence(group.name, keys[: len(valid)])
                valid &= self._window(present, group) if group.kind is GroupKind.SLIDING else present
        return self._longest(valid)

    def _covered(self, keys: Keys) -> Masks:
        """Row i: workers that hold blocks 0 to i in every group that must cover the whole prefix; ends with the last row
        in which there is one.

        Looks at ever larger pieces and stops where no worker is left: most prompts are new after a few blocks.
        """
        everybody = np.full(self._words, _ALL)
        full = [g.name for g in self.family.groups if g.kind is GroupKind.FULL]
        if not full:
            return np.tile(everybody, (len(keys), 1))
        rows: list[Masks] = []
        start, size = 0, _FIRST_LOOK_BLOCKS
        while start < len(keys) and everybody.any():
            piece = keys[start : start + size]
            present = self._presence(full[0], piece)
            for name in full[1:]:
                present &= self._presence(name, piece)
            present[0] &= everybody
            np.bitwise_and.accumulate(present, axis=0, out=present)  # caches may have holes
            rows.append(present)
            everybody = present[-1]
            start, size = start + size, size * _LOOK_FURTHER
        if not everybody.any():
            held = np.flatnonzero(rows[-1].reshape(-1))
            rows[-1] = rows[-1][: held[-1] // self._words + 1 if len(held) else 0]
        return np.concatenate(rows)

    def _presence(self, group: str, keys: Keys) -> Masks:
        tables = [self._tables[group, tier] for tier in CacheTier if (group, tier) in self._tables]
        if not tables:
            return np.zeros((len(keys), self._words), dtype=np.uint64)
        present = tables[0].lookup(keys)
        for table in tables[1:]:
            present |= table.lookup(keys)
        return present

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

    def _longest(self, valid: Masks) -> dict[WorkerId, int]:
        """The last row in which each worker's bit is set, in tokens."""
        ends = valid.copy()
        ends[:-1] &= ~valid[1:]  # a worker's last row is among those after which its bit is not set
        flat = ends.reshape(-1)
        seen = [0] * self._words
        found: dict[WorkerId, int] = {}
        for at in np.flatnonzero(flat)[::-1].tolist():
            row, word = divmod(at, self._words)
            last = int(flat[at]) & ~seen[word]
            seen[word] |= last
            for bit in set_bits(last):
                worker_id = self._workers.get(word * WORD_BITS + bit)
                if worker_id is not None:
                    found[worker_id] = (row + 1) * self.family.block_tokens
        return found

    def _table(self, group: str, tier: CacheTier) -> HolderTable:
        key = (group, tier)
        if key not in self._tables:
            self._tables[key] = HolderTable(self._words)
        return self._tables[key]


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
