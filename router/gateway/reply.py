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
from starlette.types import Receive, Scope, Send

from prfaas.errors import DeadlineExceeded, PrfaasError, RequestCancelled
from router.gateway.sse import KEEPALIVE, dump

T = TypeVar("T")

LAST_WORDS_S = 10.0  # that a client gets to take the end of a stream; one that reads nothing gets no end


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """Do `work`; cancel it the moment the client disconnects.

    Raises:
        RequestCancelled: the client went away first. The work has ended when this is raised.
    """
    working = asyncio.current_task()
    assert working is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        working.cancel()

    watching = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and working.uncancel() == 0:  # nobody else wanted it to end
            raise RequestCancelled("the client closed the connection") from None
        raise
    finally:
        watching.cancel()


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
        """The response may start, with these headers: at the first event, or earlier when a keep-alive is due. Called again
        before it has started, it replaces them."""
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
        sink = _Sink(send, self._keepalive_s)
        try:
            await while_connected(receive, self._run(sink))
        except RequestCancelled as error:
            if not sink.started:
                raise
            self._late(error)  # noted; nobody is there to read it

    async def _run(self, sink: _Sink) -> None:
        last = b""
        try:
            await within(self._limit_s, self._produce(sink))
        except PrfaasError as error:
            if not sink.started:
                raise
            last = self._late(error)
        finally:
            sink.rest()
        with suppress(DeadlineExceeded):
            await within(LAST_WORDS_S, sink.close(last))


class _Sink:
    """An EventSink over ASGI."""

    def __init__(self, send: Send, keepalive_s: float) -> None:
        self._send = send
        self._keepalive_s = keepalive_s
        self._headers: Mapping[str, str] = {}
        self._sent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None
        self.started = False

    def open(self, headers: Mapping[str, str]) -> None:
        self._headers = headers
        if self._timer is None:
            self._wait()

    async def send(self, events: bytes) -> None:
        self._sent += 1
        await self._start()
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def close(self, last: bytes) -> None:
        await self._start()
        await self._send({"type": "http.response.body", "body": last, "more_body": False})

    def rest(self) -> None:
        """No more keep-alives."""
        if self._timer is not None:
            self._timer.cancel()
        if self._beating is not None:
            self._beating.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._keepalive_s, self._beat, self._sent)

    def _beat(self, sent_before: int) -> None:
        """A comment for an interval in which nothing was sent; a client that does not take one gets no second."""
        if self._sent == sent_before and (self._beating is None or self._beating.done()):
            self._beating = asyncio.create_task(self.send(KEEPALIVE))
        self._wait()

    async def _start(self) -> None:
        if self.started:
            return
        self.started = True
        headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        headers.update(self._headers)
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
