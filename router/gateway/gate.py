"""Counts the requests inside and refuses more than fit, or all while draining. Knows nothing of what they ask."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from prfaas.errors import Draining, QueueFull
from prfaas.metrics import REQUESTS_ACTIVE, MetricSet


class Gate:
    """Owned by the event loop. `drain` is for the process that is leaving."""

    def __init__(self, limit: int, metrics: MetricSet) -> None:
        self._limit = limit
        self._metrics = metrics
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    @property
    def inside(self) -> int:
        """Requests between arrival and their end."""
        return self._inside

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold a place for the duration of a request.

        Raises:
            Draining: no new requests are taken.
            QueueFull: `limit` requests are inside.
        """
        if self.draining:
            raise Draining("this router is shutting down; send the request again", retry_after_s=1.0)
        if self._inside >= self._limit:
            raise QueueFull(
                f"{self._inside} requests are already in flight; retry shortly",
                depth=self._inside,
                limit=self._limit,
                retry_after_s=1.0,
            )
        self._change(1)
        try:
            yield
        finally:
            self._change(-1)

    def drain(self) -> None:
        """Refuse new requests from now on; those inside go on."""
        self.draining = True

    async def empty(self) -> None:
        """Wait until nobody is inside."""
        await self._empty.wait()

    def _change(self, by: int) -> None:
        self._inside += by
        self._metrics.set(REQUESTS_ACTIVE, self._inside)
        if self._inside:
            self._empty.clear()
        else:
            self._empty.set()
