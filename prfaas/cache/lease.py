"""What one sequence holds of the cache: block tables, state slots and the nodes of its published prefix. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prfaas.cache.tree import Node
from prfaas.modelspec import KvRange
from prfaas.types import CacheTier

ABSENT = -1  # an entry of a block table whose block the sequence does not hold (outside its window)


@dataclass(frozen=True, slots=True)
class Move:
    """Copy a block or slot of `group`. Both ends are pinned until the manager is told that it is done."""

    group: str
    source: int
    target: int
    source_tier: CacheTier = CacheTier.DEVICE
    target_tier: CacheTier = CacheTier.DEVICE


@dataclass(frozen=True, slots=True)
class Kept:
    """States after `num_tokens`, a block boundary, that a sequence holds besides its working ones: STATE group -> slot."""

    num_tokens: int
    slots: dict[str, int]


@dataclass(slots=True, eq=False)
class Lease:
    """Owned by one sequence, changed only by the cache manager.

    tables: FULL and SLIDING group -> block numbers from the sequence's start, ABSENT below the window. slots: STATE
    group -> the sequence's working state. quotas: SLIDING group -> blocks set aside for this sequence, so that its
    window can always move on. nodes: the prefix-tree path of its published blocks. rolling: where its latest decode
    snapshot is, which the next one replaces.
    """

    tables: dict[str, list[int]]
    slots: dict[str, int]
    quotas: Mapping[str, int]
    window_starts: dict[str, int]  # SLIDING group -> first table index that is still held
    torn: Mapping[str, int]  # SLIDING group -> table index of a block that a landing fills only from the window on
    nodes: list[Node] = field(default_factory=list)
    rolling: Node | None = None
    kept: Kept | None = None
    closed: bool = False

    @property
    def kept_tokens(self) -> int:
        """The block boundary whose states are kept besides the working ones; 0 for none."""
        return 0 if self.kept is None else self.kept.num_tokens

    def places(self, wanted: KvRange, num_tokens: int) -> tuple[int, ...]:
        """The block table of a range of a prompt of `num_tokens`, or the one slot of its states; empty for states that
        are not held."""
        if wanted.group in self.tables:
            return tuple(self.tables[wanted.group])
        if wanted.token_stop == num_tokens:
            return (self.slots[wanted.group],)
        if self.kept is None or self.kept.num_tokens != wanted.token_stop:
            return ()
        return (self.kept.slots[wanted.group],)

    def ends_in(self, places: frozenset[tuple[str, int]]) -> bool:
        """Whether a working state, or the last block of a table, is one of these (group, number)."""
        last = [(name, table[-1]) for name, table in self.tables.items() if table]
        return not places.isdisjoint((*last, *self.slots.items()))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Slots set aside for a snapshot that a step is about to copy: STATE group -> target slot."""

    moves: tuple[Move, ...]
    rolling: bool
