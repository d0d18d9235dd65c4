"""A door that can be open or closed, and that knows how many are inside. Knows nothing of what they do there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prfaas.errors import Draining


class Gate:
    """Closed at first. Used from one event loop. `left` is called whenever somebody has left."""

    def __init__(self, what: str, left: Callable[[], None] = lambda: None) -> None:
        self._what = what
        self._left = left
        self._open = False
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def inside(self) -> int:
        """Calls that entered and have not left."""
        return self._inside

    @property
    def is_open(self) -> bool:
        return self._open

    def open(self) -> None:
        self._open = True

    def close(self) -> None:
        """Let nobody in any more; those inside go on."""
        self._open = False

    def admit(self) -> Callable[[], None]:
        """Enter; the result leaves, once however often it is called. Raises Draining when closed."""
        if not self._open:
            raise Draining(f"this worker takes no {self._what} requests at the moment")
        self._inside += 1
        self._empty.clear()
        present = True

        def leave() -> None:
            nonlocal present
            if present:
                present = False
                self._inside -= 1
                if self._inside == 0:
                    self._empty.set()
                self._left()

        return leave

    async def wait_empty(self, timeout_s: float) -> int:
        """Wait until everybody has left, at most `timeout_s`; returns how many are still inside."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            pass
        return self._inside
