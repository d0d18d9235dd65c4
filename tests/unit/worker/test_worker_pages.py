"""A cache snapshot cut into messages: bounded, in order, nothing lost and nothing twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.types import BlockHash, CacheEvent, CacheEventKind, CacheTier
from prfaas.worker.registration import pages


def events_of(sizes: list[int]) -> list[CacheEvent]:
    return [
        CacheEvent(
            number,
            CacheEventKind.STORED,
            f"group {number % 2}",
            CacheTier.DEVICE,
            tuple(BlockHash(bytes([number, at])) for at in range(size)),
        )
        for number, size in enumerate(sizes)
    ]


@given(sizes=st.lists(st.integers(0, 40), max_size=20), most=st.integers(1, 25))
def test_pages_are_bounded_and_together_are_the_snapshot(sizes: list[int], most: int) -> None:
    events = events_of(sizes)
    cut = list(pages(events, most))
    counts = [sum(len(event.hashes) for event in page) for page in cut]
    assert all(count == most for count in counts[:-1])
    assert all(0 < count <= most for count in counts)
    sent = [(event.group, event.tier, name) for page in cut for event in page for name in event.hashes]
    assert sent == [(event.group, event.tier, name) for event in events for name in event.hashes]
