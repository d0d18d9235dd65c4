"""A hash table from block names to the set of workers that hold the block, vectorised over many names at once.

Keys are the low 64 bits of a block name: among 10 million blocks a 1,500-block prompt meets a false key with
probability 1e-9, and a false promise costs time, never a wrong token. Values are bit sets, one bit for each worker.
Open addressing with linear probing; a block that nobody holds any more keeps its slot, with an empty set, until the
next rebuild. Knows nothing of prefixes, groups or what the bits stand for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]
Masks = NDArray[np.uint64]  # [n, words]

WORD_BITS = 64
_MIN_SLOTS = 1024
_MAX_LOAD = 0.6
_EMPTY = np.uint64(0)
_ONE = np.uint64(1)


class HolderTable:
    """Grows by doubling; not bounded by itself, its owner bounds what it stores."""

    def __init__(self, words: int = 1) -> None:
        self._words = words
        self._used = 0  # slots with a key, held by somebody or not
        self._keys: Keys = np.zeros(_MIN_SLOTS, dtype=np.uint64)
        self._masks: Masks = np.zeros((_MIN_SLOTS, words), dtype=np.uint64)

    @property
    def num_keys(self) -> int:
        """Slots in use, names that nobody holds any more included."""
        return self._used

    @property
    def num_bytes(self) -> int:
        return self._keys.nbytes + self._masks.nbytes

    def lookup(self, keys: Keys) -> Masks:
        """The holders of each key, [len(keys), words]; all zero where the key is unknown."""
        slots, known = self._find(keys)
        masks = self._masks[slots]
        masks[~known] = 0
        return masks

    def add(self, keys: Keys, bit: int) -> None:
        """Record that worker `bit` holds these blocks. Keys may repeat."""
        if (self._used + len(keys)) > len(self._keys) * _MAX_LOAD:
            self._rebuild(self._used + len(keys))
        keys = np.unique(self._real(keys))
        slots, known = self._find(keys)
        if not known.all():
            slots[~known] = self._insert(keys[~known], slots[~known])
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
            masks = np.zeros((len(self._keys), words), dtype=np.uint64)
            masks[:, : self._words] = self._masks
            self._masks, self._words = masks, words

    @staticmethod
    def _real(keys: Keys) -> Keys:
        """Zero marks an empty slot, so the name zero is stored as one."""
        return np.where(keys == _EMPTY, _ONE, keys)

    def _find(self, keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each key its slot and True, or the empty slot that ends its probe sequence and False."""
        keys = self._real(keys)
        last = np.uint64(len(self._keys) - 1)
        slots = (keys & last).astype(np.int64)
        found = self._keys[slots]
        known = found == keys
        pending = np.flatnonzero(~known & (found != _EMPTY))
        while len(pending):
            slots[pending] = (slots[pending] + 1) & int(last)
            found = self._keys[slots[pending]]
            hit = found == keys[pending]
            known[pending[hit]] = True
            pending = pending[~hit & (found != _EMPTY)]
        return slots, known

    def _insert(self, keys: Keys, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """Place distinct unknown keys, starting from the empty slots that `_find` gave; returns their slots."""
        last = len(self._keys) - 1
        slots = slots.copy()
        pending = np.arange(len(keys))
        while len(pending):
            free = self._keys[slots[pending]] == _EMPTY
            trying = pending[free]
            self._keys[slots[trying]] = keys[trying]  # where two keys meet, the later write stays
            pending = pending[self._keys[slots[pending]] != keys[pending]]
            slots[pending] = (slots[pending] + 1) & last
        self._used += len(keys)
        return slots

    def _rebuild(self, wanted: int) -> None:
        """Drop names that nobody holds, and double until `wanted` keys fit comfortably."""
        alive = np.flatnonzero((self._keys != _EMPTY) & self._masks.any(axis=1))
        keys, masks = self._keys[alive], self._masks[alive]
        size = len(self._keys)
        wanted -= self._used - len(alive)
        while wanted > size * _MAX_LOAD * 0.75:
            size *= 2
        self._keys = np.zeros(size, dtype=np.uint64)
        self._masks = np.zeros((size, self._words), dtype=np.uint64)
        self._used = 0
        slots, _ = self._find(keys)
        self._masks[self._insert(keys, slots)] = masks
