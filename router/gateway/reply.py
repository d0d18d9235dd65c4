"""Replies that end when their client does: a JSON document computed, or an event stream produced, while somebody listens.

Both watch the connection while they work. A client that goes away cancels the work at once, which closes the pipeline's
stream and with it everything downstream. This module does not know dialects or tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from prfaas.errors import DeadlineExceeded, PrfaasError, RequestCancelled
from router.gateway.sse import KEEPALIVE, dump

T = TypeVar("T")

LAST_WORDS_S = 10.0  # that a client gets to take the end of a stream; one that reads nothing gets no end


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it the moment the client disconnects.

    Raises:
        RequestCancelled: the client went away first. The work has ended when this is raised.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestCancelled("the client closed the connection")
        return task.result()
    finally:
        for running in (task, watcher):
            running.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    message: Message = {"type": ""}
    while message["type"] != "http.disconnect":
        message = await receive()


async def within(limit_s: float | None, work: Awaitable[T]) -> T:
    """Raises DeadlineExceeded when `work` takes longer; the last resort behind the deadlines of those who do it."""
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError as error:
        raise DeadlineExceeded(f"the request took longer than the limit of {limit_s} s") from error


class JsonReply(Response):
    """A JSON document, computed while the client waits. Errors of the work pass through to the error handlers."""

    media_type = "application/json"

    def __init__(
        self, work: Callable[[], Coroutine[Any, Any, tuple[Any, Mapping[str, str]]]], *, limit_s: float | None
    ) -> None:
        """`work` returns the document and response headers, within `limit_s`."""
        super().__init__()
        self._work = work
        self._limit_s = limit_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        document, headers = await while_connected(receive, within(self._limit_s, self._work()))
        self.body = dump(document)
        self.init_headers(dict(headers))
        await super().__call__(scope, receive, send)


class EventSink(Protocol):
    """Where a producer writes its stream."""

    def open(self, headers: Mapping[str, str]) -> None:
        """The response may start, with these headers: at the first event, or earlier when a keep-alive is due."""
        ...

    async def send(self, events: bytes) -> None:
        """Send whole events; starts the response if need be. Waits while the client reads slowly."""
        ...


class StreamReply(Response):
    """An event stream. Once it may start, a comment is sent whenever nothing else was for `keepalive_s`; until then and
    until the first event a failure still gets an HTTP status of its own."""

    media_type = "text/event-stream"

    def __init__(
        self,
        produce: Callable[[EventSink], Awaitable[None]],
        *,
        keepalive_s: float,
        limit_s: float | None,
        late: Callable[[PrfaasError], bytes],
    ) -> None:
        """`late` notes an error that comes too late for an HTTP status, and spells it as an event."""
        super().__init__()
        self._produce = produce
        self._keepalive_s = keepalive_s
        self._limit_s = limit_s
        self._late = late

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sink = _Sink(send)
        try:
            await while_connected(receive, self._run(sink))
        except RequestCancelled as error:
            if not sink.started:
                raise
            self._late(error)  # noted; nobody is there to read it

    async def _run(self, sink: _Sink) -> None:
        keepalive = asyncio.ensure_future(sink.keep_alive(self._keepalive_s))
        last = b""
        try:
            await within(self._limit_s, self._produce(sink))
        except PrfaasError as error:
            if not sink.started:
                raise
            last = self._late(error)
        finally:
            keepalive.cancel()
            await asyncio.gather(keepalive, return_exceptions=True)
        with suppress(DeadlineExceeded):
            await within(LAST_WORDS_S, sink.close(last))


class _Sink:
    """An EventSink over ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._headers: Mapping[str, str] = {}
        self._opened = asyncio.Event()
        self._sent = 0
        self.started = False

    def open(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        self._opened.set()

    async def send(self, events: bytes) -> None:
        self._sent += 1
        await self._start()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close(self, last: bytes) -> None:
        await self._start()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    async def keep_alive(self, every_s: float) -> None:
        """Send a comment for every interval in which nothing was sent. Runs until cancelled."""
        await self._opened.wait()
        while True:
            before = self._sent
            await asyncio.sleep(every_s)
            if self._sent == before:
                await self.send(KEEPALIVE)

    async def _start(self) -> None:
        if self.started:
            return
        self.started = True
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        headers.update(self._headers)
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
