"""Blocks (or state slots) of one cache group as numbers: free, cached or used. Knows no tokens, names or tensors.

free    nobody's content; handed out first
cached  no user, but the prefix tree can still find its content; evicted oldest first
used    at least one user; `retained` says whether it becomes cached or free when the last user leaves
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolCounts:
    """How many blocks are in which state; they sum to `total`."""

    total: int
    free: int
    cached: int
    used: int


class BlockPool:
    """Reference counts, the free list and the eviction order of one group."""

    def __init__(self, group: str, num_blocks: int) -> None:
        self.group = group
        self.num_blocks = num_blocks
        self._users = [0] * num_blocks
        self._retained = [False] * num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def num_available(self) -> int:
        """Blocks that can be had, by eviction if need be."""
        return len(self._free) + len(self._cached)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def counts(self) -> PoolCounts:
        free, cached = len(self._free), len(self._cached)
        return PoolCounts(self.num_blocks, free, cached, self.num_blocks - free - cached)

    def take(self) -> int:
        """A free block, with one user. The caller evicts first when none is free."""
        block = self._free.pop()
        self._users[block] = 1
        return block

    def use(self, block: int) -> None:
        """Add a user; a cached block leaves the eviction order."""
        if self._users[block] == 0:
            del self._cached[block]
        self._users[block] += 1

    def leave(self, block: int) -> None:
        """Remove a user; the last one turns the block into the youngest cached block, or a free one."""
        assert self._users[block] > 0, f"{self.group}: block {block} has no user to leave it"
        self._users[block] -= 1
        if self._users[block] == 0:
            self._settle(block)

    def retain(self, block: int) -> None:
        """The prefix tree names this used block from now on."""
        assert self._users[block] > 0, f"{self.group}: only a used block can be named"
        assert not self._retained[block], f"{self.group}: block {block} is named twice"
        self._retained[block] = True

    def forget(self, block: int) -> None:
        """The prefix tree no longer names this block; without users it is free at once."""
        assert self._retained[block], f"{self.group}: block {block} is not named"
        self._retained[block] = False
        if self._users[block] == 0:
            del self._cached[block]
            self._settle(block)

    def is_used(self, block: int) -> bool:
        return self._users[block] > 0

    def oldest(self) -> int | None:
        """The cached block to evict next."""
        return next(iter(self._cached), None)

    def demote(self, block: int) -> None:
        """Make a cached block the next to be evicted; a used one keeps its place."""
        if block in self._cached:
            self._cached.move_to_end(block, last=False)

    def _settle(self, block: int) -> None:
        if self._retained[block]:
            self._cached[block] = None
        else:
            self._free.append(block)

    def check_integrity(self) -> None:
        """Every block is in exactly one state. Raises AssertionError."""
        free = set(self._free)
        assert len(free) == len(self._free), f"{self.group}: a block is free twice"
        for block in range(self.num_blocks):
            used = self._users[block] > 0
            assert self._users[block] >= 0
            assert used + (block in free) + (block in self._cached) == 1, f"{self.group}: block {block} has no one state"
            if block in self._cached:
                assert self._retained[block], f"{self.group}: cached block {block} cannot be found"
            if block in free:
                assert not self._retained[block], f"{self.group}: free block {block} can still be found"
