"""Carries a thread's stop event into an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

POLL_S = 0.1  # bounds how long the watching thread outlives a loop that ends for another reason


@asynccontextmanager
async def following(stop: threading.Event) -> AsyncIterator[asyncio.Event]:
    """An event of the running loop that is set once `stop` is."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if stop.wait(POLL_S):
                loop.call_soon_threadsafe(stopped.set)
                return

    thread = threading.Thread(target=watch, name="stop-watch", daemon=True)
    thread.start()
    try:
        yield stopped
    finally:
        over.set()
        await asyncio.to_thread(thread.join)
