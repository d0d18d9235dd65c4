"""The second tier: copies of named blocks and snapshots in host memory, for prefixes that the device has evicted.

Blocks are written through when they are published, so evicting them on the device costs nothing and can never race with
the block's next owner. Names and slots only; the copies are moves that a backend runs.
"""

from __future__ import annotations

from collections.abc import Mapping

from prfaas.cache.events import EventLog
from prfaas.cache.pool import BlockPool
from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheTier


class HostTier:
    """Group and name -> host slot. A slot is used while a copy to or from it is under way."""

    def __init__(self, sizes: Mapping[str, int], events: EventLog) -> None:
        self._pools = {group: BlockPool(group, size) for group, size in sizes.items()}
        self._slots: dict[str, dict[BlockHash, int]] = {group: {} for group in sizes}
        self._names: dict[str, dict[int, BlockHash]] = {group: {} for group in sizes}
        self._arriving: dict[str, dict[int, BlockHash]] = {group: {} for group in sizes}
        self._events = events

    @property
    def empty(self) -> bool:
        return not any(self._slots.values())

    def has(self, group: str, name: BlockHash) -> bool:
        return name in self._slots[group]

    def save(self, group: str, name: BlockHash) -> int | None:
        """A slot to copy a named block to; None when it is here or on its way, or every slot is in use."""
        pool = self._pools[group]
        if self.has(group, name) or name in self._arriving[group].values() or pool.num_available == 0:
            return None
        if pool.num_free == 0:
            oldest = pool.oldest()
            assert oldest is not None, "an available slot is free or cached"
            self._forget(group, oldest)
        slot = pool.take()
        self._arriving[group][slot] = name
        return slot

    def load(self, group: str, name: BlockHash) -> int:
        """The slot to copy a held block from; it stays until `settle`."""
        slot = self._slots[group][name]
        self._pools[group].use(slot)
        return slot

    def settle(self, group: str, slot: int, *, arrived: bool) -> None:
        """A copy from or to `slot` is over; `arrived` says whether a copy to it has run."""
        name = self._arriving[group].pop(slot, None)
        if name is not None and arrived:
            self._pools[group].retain(slot)
            self._slots[group][name] = slot
            self._names[group][slot] = name
            self._events.add(CacheEventKind.STORED, group, [name], CacheTier.HOST)
        self._pools[group].leave(slot)

    def clear(self) -> None:
        """Forget every name; the caller tells."""
        for group, names in self._names.items():
            for slot in list(names):
                del self._slots[group][names.pop(slot)]
                self._pools[group].forget(slot)

    def contents(self, seq: int) -> list[CacheEvent]:
        """`stored` events that rebuild the view of this tier, all with number `seq`."""
        kind, tier = CacheEventKind.STORED, CacheTier.HOST
        return [CacheEvent(seq, kind, group, tier, tuple(slots)) for group, slots in self._slots.items() if slots]

    def _forget(self, group: str, slot: int) -> None:
        name = self._names[group].pop(slot)
        del self._slots[group][name]
        self._pools[group].forget(slot)
        self._events.add(CacheEventKind.REMOVED, group, [name], CacheTier.HOST)

    def check_integrity(self) -> None:
        """Names and slots mirror each other. Raises AssertionError."""
        for group, pool in self._pools.items():
            pool.check_integrity()
            assert {slot: name for name, slot in self._slots[group].items()} == self._names[group]
            assert not self._names[group].keys() & self._arriving[group].keys()
            assert all(pool.is_used(slot) for slot in self._arriving[group])
