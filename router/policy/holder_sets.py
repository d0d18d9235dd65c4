"""Sets of workers, each distinct one stored once: what holds a block is a number of four bytes, however many workers there are.

Blocks that were stored together are held by the same workers, so that millions of blocks share a few thousand sets. Number 0
is the empty set. Knows nothing of blocks, groups or who the members are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.uint64]  # [n, words], one bit for each possible member
SetNumbers = NDArray[np.int32]  # [n]

WORD_BITS = 64
_WORD_BYTES = WORD_BITS // 8
_MIN_SETS = 64


class HolderSets:
    """Interned sets. One that nobody refers to any more stays until `keep` is called."""

    def __init__(self) -> None:
        self._words = 1
        self._sets = [0]  # by number, as bits of an integer
        self._numbers = {0: 0}
        self._masks: Masks = np.zeros((_MIN_SETS, self._words), dtype=np.uint64)  # the same as `_sets`, for many at once

    def __len__(self) -> int:
        return len(self._sets)

    @property
    def words(self) -> int:
        """64-bit words of a mask."""
        return self._words

    def widen(self, words: int) -> None:
        """Make room for members up to words * 64."""
        if words > self._words:
            masks = np.zeros((len(self._masks), words), dtype=np.uint64)
            masks[:, : self._words] = self._masks
            self._masks, self._words = masks, words

    def masks(self, numbers: SetNumbers) -> Masks:
        """The members of each set, [len(numbers), words]."""
        return self._masks.take(numbers, axis=0)

    def changed(self, numbers: SetNumbers, bit: int, *, member: bool) -> SetNumbers:
        """The sets that come of these when `bit` becomes a member of each, or ceases to be one."""
        if (numbers == numbers[0]).all():
            return np.full_like(numbers, self._with(int(numbers[0]), bit, member))
        kinds, which = np.unique(numbers, return_inverse=True)
        made = np.array([self._with(number, bit, member) for number in kinds.tolist()], dtype=np.int32)
        return made[which]

    def without(self, bit: int) -> SetNumbers:
        """For each set there is, the number of the same set without `bit`, [len(self)]."""
        made = np.arange(len(self._sets), dtype=np.int32)
        column = self._masks[: len(made), bit // WORD_BITS]
        for number in np.flatnonzero(column >> np.uint64(bit % WORD_BITS) & np.uint64(1)).tolist():
            made[number] = self._with(number, bit, False)
        return made

    def keep(self, used: NDArray[np.bool_]) -> SetNumbers:
        """Forget the sets that are not `used`, [len(self)]; returns the new number of each. The empty set always stays."""
        used[0] = True
        made = np.cumsum(used, dtype=np.int32) - 1
        kept = [members for members, stays in zip(self._sets, used.tolist(), strict=True) if stays]
        self._masks = np.concatenate((self._masks[: len(used)][used], np.zeros((_MIN_SETS, self._words), dtype=np.uint64)))
        self._sets, self._numbers = kept, {members: number for number, members in enumerate(kept)}
        return made.astype(np.int32)

    def _with(self, number: int, bit: int, member: bool) -> int:
        old = self._sets[number]
        members = old | 1 << bit if member else old & ~(1 << bit)
        made = self._numbers.get(members)
        if made is None:
            made = self._numbers[members] = len(self._sets)
            self._sets.append(members)
            if made == len(self._masks):
                self._masks = np.concatenate((self._masks, np.zeros_like(self._masks)))
            self._masks[made] = np.frombuffer(members.to_bytes(self._words * _WORD_BYTES, "little"), dtype="<u8")
        return made
