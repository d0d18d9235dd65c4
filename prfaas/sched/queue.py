"""Sequences waiting for a seat, in the order in which they get one. Knows neither blocks nor budgets."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from prfaas.sched.sequence import Sequence


class WaitingQueue:
    """Sorted by rank; the limit is the caller's to enforce, because a preempted sequence always comes back."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    @property
    def head(self) -> Sequence | None:
        return self._sequences[0] if self._sequences else None

    def push(self, sequence: Sequence) -> None:
        insort(self._sequences, sequence, key=_rank)

    def position(self, sequence: Sequence) -> int | None:
        """How many go before it; None when it does not wait."""
        index = bisect_left(self._sequences, sequence.rank, key=_rank)
        found = index < len(self._sequences) and self._sequences[index] is sequence
        return index if found else None

    def discard(self, sequence: Sequence) -> bool:
        """Take it out if it waits here."""
        index = self.position(sequence)
        if index is None:
            return False
        del self._sequences[index]
        return True


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank
