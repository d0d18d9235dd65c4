"""One router's stream: its requests run beside each other, and what they tell leaves gathered in few messages.

Knows calls by their numbers. What a call does, and how it spells its end, is the business of the one who serves it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import grpc.aio

from prfaas.pb import decode_pb2
from prfaas.rpc import Gathered

Requests = AsyncIterator[decode_pb2.GenerateRequests]
Context = grpc.aio.ServicerContext[Any, Any]
Tell = Callable[[decode_pb2.GenerateEvent], None]
# Serves one call to its end and raises nothing but CancelledError.
Serve = Callable[[decode_pb2.GenerateRequest, Tell], Coroutine[Any, Any, None]]


class Session:
    """What waits to be sent is bounded by what the calls can produce: for a request, its max_tokens."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._events: Gathered[decode_pb2.GenerateEvents] = Gathered()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._closing = False

    async def run(self, requests: Requests, context: Context) -> None:
        """Until the router leaves, which cancels all calls, or until the last call has ended after `close`."""
        writing = asyncio.create_task(self._write(context))
        self._reading = asyncio.create_task(self._read(requests))
        try:
            self._end_if_idle()
            await asyncio.wait([self._reading])
            if self._closing and not self._calls:
                self._events.close()
                await asyncio.wait([writing])
        finally:
            tasks = [self._reading, writing, *self._calls.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """End when nothing runs any more."""
        self._closing = True
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self._closing and not self._calls and self._reading is not None:
            self._reading.cancel()

    async def _read(self, requests: Requests) -> None:
        async for message in requests:
            for request in message.started:
                task = asyncio.create_task(self._serve(request, partial(self._tell, request.call)))
                self._calls[request.call] = task
                task.add_done_callback(partial(self._ended, request.call))
            for call in message.cancelled:
                if call in self._calls:
                    self._calls[call].cancel()

    async def _write(self, context: Context) -> None:
        while (message := await self._events.take()) is not None:
            await context.write(message)

    def _tell(self, call: int, event: decode_pb2.GenerateEvent) -> None:
        event.call = call
        self._events.put(decode_pb2.GenerateEvents(events=[event]))

    def _ended(self, call: int, _: asyncio.Task[None]) -> None:
        del self._calls[call]
        self._end_if_idle()
