"""One job's events on an event loop, and the two handles that doors hold: a stream and a landing.

The handles know their job and the engine's few doors to it (`JobPort`); they know neither core nor backend.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from prfaas.engine.api import EngineEvent, EngineStream, Finished
from prfaas.engine.job import JobId
from prfaas.errors import PrfaasError
from prfaas.modelspec import DType, KvRange
from prfaas.types import TokenOutput


class JobPort(Protocol):
    """What a handle may ask of its engine. Every method is immediate and callable from any thread."""

    def end_job(self, job_id: JobId) -> None: ...

    def read_job(self, job_id: JobId, wanted: KvRange) -> memoryview: ...

    def write_job(self, job_id: JobId, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None: ...

    def commit_job(self, job_id: JobId, first: Sequence[TokenOutput], snapshot_tokens: int) -> EngineStream: ...


class JobStream:
    """Implements `EngineStream`. The queue is bounded by what one request can produce: its tokens and layer ranges."""

    def __init__(self, engine: JobPort, job_id: JobId, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._engine = engine
        self._job_id = job_id
        self._queue: asyncio.Queue[EngineEvent | PrfaasError] = asyncio.Queue()
        self._over = False

    def put(self, event: EngineEvent | PrfaasError) -> None:
        """Deliver one event. Called on the stream's event loop."""
        self._queue.put_nowait(event)

    async def events(self) -> AsyncIterator[EngineEvent]:
        while not self._over:
            event = await self._queue.get()
            if isinstance(event, PrfaasError):
                self._over = True
                raise event
            self._over = isinstance(event, Finished)
            yield event

    def cancel(self) -> None:
        self._engine.end_job(self._job_id)

    def read(self, wanted: KvRange) -> memoryview:
        return self._engine.read_job(self._job_id, wanted)

    def release(self) -> None:
        self._engine.end_job(self._job_id)


class JobLanding:
    """Implements `Landing`."""

    def __init__(self, engine: JobPort, job_id: JobId, held_tokens: int) -> None:
        self._engine = engine
        self._job_id = job_id
        self._held_tokens = held_tokens

    @property
    def held_tokens(self) -> int:
        return self._held_tokens

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        self._engine.write_job(self._job_id, landed, payload, dtypes)

    def commit(self, first: Sequence[TokenOutput], *, snapshot_tokens: int = 0) -> EngineStream:
        return self._engine.commit_job(self._job_id, first, snapshot_tokens)

    def abort(self) -> None:
        self._engine.end_job(self._job_id)
