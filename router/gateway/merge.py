"""Runs several generations at once and yields their events as they come. Knows nothing of what the events say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from router.gateway.generation import Generation, GenerationEvent

# Few events wait here; what a slow client leaves behind waits where it is bounded, at the stream from its worker.
QUEUE_EVENTS = 16


async def run_all(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, GenerationEvent], None]:
    """Pairs of (which generation, its event), until all have ended. The first failure ends the others and is raised."""
    if len(generations) == 1:
        async with aclosing(generations[0].run()) as events:
            async for only in events:
                yield 0, only
        return
    queue: asyncio.Queue[tuple[int, GenerationEvent | None]] = asyncio.Queue(QUEUE_EVENTS)
    tasks = [asyncio.ensure_future(_feed(queue, at, generation)) for at, generation in enumerate(generations)]
    try:
        running = len(tasks)
        while running:
            at, event = await queue.get()
            if event is None:
                running -= 1
                tasks[at].result()
            else:
                yield at, event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(queue: asyncio.Queue[tuple[int, GenerationEvent | None]], at: int, generation: Generation) -> None:
    """Pass events on, and None at the end, good or bad; the task's own result tells. Cancelled, it says nothing: its
    reader has left, and a full queue would hold it for ever."""
    try:
        async with aclosing(generation.run()) as events:
            async for event in events:
                await queue.put((at, event))
    except Exception:
        await queue.put((at, None))
        raise
    await queue.put((at, None))
