"""A hash table from block names to the set of workers that hold the block, vectorised over many names at once.

Keys are the low 64 bits of a block name, and never zero: among 10 million blocks a 1,500-block prompt meets a false
key with probability 1e-9, and a false promise costs time, never a wrong token. Values are bit sets, one bit for each
worker. Buckets of eight keys fill one cache line each; a key whose bucket is full goes to the next one. A block that
nobody holds any more keeps its slot, with an empty set, until the next rebuild. Knows nothing of prefixes, groups or
what the bits stand for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]  # [n]
Masks = NDArray[np.uint64]  # [n, words]
Slots = NDArray[np.int64]  # [n]

WORD_BITS = 64
NO_KEY = np.uint64(0)  # marks an empty slot
_BUCKET = 8  # keys of 8 bytes in a cache line of 64
_MIN_BUCKETS = 128
_MAX_LOAD = 0.6
_ONE = np.uint64(1)


class HolderTable:
    """Grows by doubling; not bounded by itself, its owner bounds what it stores."""

    def __init__(self, words: int = 1) -> None:
        self._words = words
        self._allocate(_MIN_BUCKETS)

    def _allocate(self, buckets: int) -> None:
        self._used = 0  # slots with a key, held by somebody or not
        self._keys = _cache_aligned(buckets)  # [buckets, 8], filled from the left
        self._fill: NDArray[np.int64] = np.zeros(buckets, dtype=np.int64)
        self._masks: Masks = np.zeros((buckets * _BUCKET, self._words), dtype=np.uint64)

    @property
    def num_keys(self) -> int:
        """Slots in use, names that nobody holds any more included."""
        return self._used

    @property
    def num_bytes(self) -> int:
        return self._keys.nbytes + self._masks.nbytes + self._fill.nbytes

    def lookup(self, keys: Keys) -> Masks:
        """The holders of each key, [len(keys), words]; all zero where the key is unknown."""
        slots, known = self._find(keys)
        masks: Masks = self._masks.take(slots, axis=0)
        if not known.all():
            masks[~known] = 0
        return masks

    def add(self, keys: Keys, bit: int) -> None:
        """Record that worker `bit` holds these blocks. Keys may repeat."""
        if self._used + len(keys) > self._keys.size * _MAX_LOAD:
            self._rebuild(self._used + len(keys))
        keys = np.unique(keys)
        slots, known = self._find(keys)
        if not known.all():
            slots[~known] = self._insert(keys[~known])
        self._masks[slots, bit // WORD_BITS] |= _ONE << np.uint64(bit % WORD_BITS)

    def discard(self, keys: Keys, bit: int) -> None:
        """Record that worker `bit` holds these blocks no more. Unknown keys are fine."""
        slots, known = self._find(keys)
        self._masks[slots[known], bit // WORD_BITS] &= ~(_ONE << np.uint64(bit % WORD_BITS))

    def clear(self, bit: int) -> None:
        """Forget everything that worker `bit` held. One pass over the table."""
        self._masks[:, bit // WORD_BITS] &= ~(_ONE << np.uint64(bit % WORD_BITS))

    def widen(self, words: int) -> None:
        """Make room for bits up to words * 64."""
        if words > self._words:
            masks = np.zeros((self._keys.size, words), dtype=np.uint64)
            masks[:, : self._words] = self._masks
            self._masks, self._words = masks, words

    def _home(self, keys: Keys) -> Slots:
        home: Slots = (keys & np.uint64(len(self._keys) - 1)).view(np.int64)
        return home

    def _find(self, keys: Keys) -> tuple[Slots, NDArray[np.bool_]]:
        """For each key its slot and True, or some slot and False."""
        buckets = self._home(keys)
        slots, known, full = self._look(keys, buckets)
        if full is None:
            return slots, known
        pending = np.flatnonzero(full & ~known)
        while len(pending):  # only past buckets that overflowed
            buckets[pending] = (buckets[pending] + 1) & (len(self._keys) - 1)
            slots[pending], found, full = self._look(keys[pending], buckets[pending])
            known[pending] = found
            if full is None:
                break
            pending = pending[full & ~found]
        return slots, known

    def _look(self, keys: Keys, buckets: Slots) -> tuple[Slots, NDArray[np.bool_], NDArray[np.bool_] | None]:
        """Look into one bucket for each key: slot, whether it is there, and whether the bucket is full (None: all are
        there, so that it does not matter)."""
        rows = self._keys.take(buckets, axis=0)
        hits = np.flatnonzero(rows == keys[:, None])  # at most one in each row: keys are distinct within a table
        slots = buckets * _BUCKET
        if len(hits) == len(keys):
            slots += hits % _BUCKET
            return slots, np.ones(len(keys), dtype=np.bool_), None
        where = hits // _BUCKET
        slots[where] += hits % _BUCKET
        known = np.zeros(len(keys), dtype=np.bool_)
        known[where] = True
        return slots, known, rows[:, _BUCKET - 1] != NO_KEY

    def _insert(self, keys: Keys) -> Slots:
        """Place distinct unknown keys; returns their slots."""
        slots = np.empty(len(keys), dtype=np.int64)
        buckets = self._home(keys)
        pending = np.arange(len(keys))
        flat = self._keys.reshape(-1)
        while len(pending):
            pending = pending[np.argsort(buckets[pending], kind="stable")]
            target = buckets[pending]
            first = np.searchsorted(target, target)  # where each bucket's run of newcomers starts
            column = self._fill[target] + np.arange(len(pending)) - first
            fits = column < _BUCKET
            placed, at = pending[fits], target[fits] * _BUCKET + column[fits]
            slots[placed] = at
            flat[at] = keys[placed]
            np.add.at(self._fill, target[fits], 1)
            pending = pending[~fits]
            buckets[pending] = (buckets[pending] + 1) & (len(self._keys) - 1)
        self._used += len(keys)
        return slots

    def _rebuild(self, wanted: int) -> None:
        """Drop names that nobody holds, and double until `wanted` keys fit comfortably."""
        flat = self._keys.reshape(-1)
        alive = np.flatnonzero((flat != NO_KEY) & self._masks.any(axis=1))
        keys, masks, buckets = flat[alive], self._masks[alive], len(self._keys)
        wanted -= self._used - len(alive)
        while wanted > buckets * _BUCKET * _MAX_LOAD * 0.75:
            buckets *= 2
        self._allocate(buckets)
        self._masks[self._insert(keys)] = masks


def _cache_aligned(buckets: int) -> NDArray[np.uint64]:
    """Zeroed keys, [buckets, 8], each bucket in one cache line."""
    line = _BUCKET * 8
    raw = np.zeros(buckets * _BUCKET + _BUCKET, dtype=np.uint64)
    skip = (-raw.ctypes.data % line) // 8
    return raw[skip : skip + buckets * _BUCKET].reshape(buckets, _BUCKET)
