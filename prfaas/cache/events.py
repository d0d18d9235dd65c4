"""What the prefix cache tells the router: a bounded, numbered log of changes. Knows no cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheTier


class EventLog:
    """Changes since the last `take`. When it overflows the oldest are lost, and the numbers show the gap."""

    def __init__(self, max_events: int) -> None:
        self._events: deque[CacheEvent] = deque(maxlen=max_events)
        self._next_seq = 0

    @property
    def next_seq(self) -> int:
        return self._next_seq

    def add(self, kind: CacheEventKind, group: str, hashes: Sequence[BlockHash], tier: CacheTier = CacheTier.DEVICE) -> None:
        """Record one change."""
        self._events.append(CacheEvent(self._next_seq, kind, group, tier, tuple(hashes)))
        self._next_seq += 1

    def take(self) -> tuple[CacheEvent, ...]:
        """Everything recorded since the last call that is still held, oldest first."""
        events = tuple(self._events)
        self._events.clear()
        return events
