"""Reads a stream ahead of its consumer, so that a slow reader gets few large batches instead of a growing delay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TypeVar

T = TypeVar("T")


async def batches(items: AsyncIterator[T]) -> AsyncGenerator[list[T], None]:
    """All items, in order, each time everything that came since the last batch; at least one.

    What piles up is bounded by what the source can produce: for a request, its max_tokens. Raises what the source
    raises, after the items before it. Close it (`contextlib.aclosing`) to stop reading the source.
    """
    pending: list[T] = []
    wake = asyncio.Event()

    async def pump() -> None:
        async for item in items:
            pending.append(item)
            wake.set()

    pumping = asyncio.create_task(pump())
    pumping.add_done_callback(lambda _: wake.set())
    try:
        while True:
            await wake.wait()
            wake.clear()
            ended = pumping.done()
            batch = pending[:]
            pending.clear()
            if batch:
                yield batch
            if ended:
                pumping.result()
                return
    finally:
        pumping.cancel()
        await asyncio.wait([pumping])
