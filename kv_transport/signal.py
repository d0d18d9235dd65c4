"""A wake-up call for any number of waiters on one event loop."""

from __future__ import annotations

import asyncio


class Signal:
    """`wait` returns at the first `notify` after it was called. Check the condition, then wait, without awaiting in
    between: nothing is lost."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everyone who waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """False when `timeout_s` passed first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._event.wait()
        except TimeoutError:
            return False
        return True
