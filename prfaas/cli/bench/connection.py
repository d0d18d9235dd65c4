"""HTTP/1.1 for measuring: each piece of a response is stamped when its bytes arrive, before anything looks at them.

A general client spends more time on a streamed token than a small server does; on a shared machine that would be measured
too. This one keeps connections alive, verifies TLS, and knows nothing of what it carries.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from prfaas.clock import Clock
from prfaas.errors import ConfigError, WorkerUnreachable

Take = Callable[[bytes, float], None]  # some bytes of a body, and when they came
CONNECT_S = 10.0
MAX_IDLE_S = 1.0  # servers keep idle connections for two seconds and more


@dataclass(frozen=True, slots=True)
class Place:
    """Where requests go: `prefix` is the path before an endpoint's own."""

    host: str
    port: int
    tls: bool
    prefix: str

    @staticmethod
    def of(url: str) -> Place:
        """Raises ConfigError for what is no http or https URL. A trailing /v1 is understood, and dropped."""
        try:
            parts = urlsplit(url if "//" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is no URL: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no http or https URL")
        tls = parts.scheme == "https"
        return Place(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class _Connection(asyncio.Protocol):
    """One connection with at most one request under way. Also the callbacks of its parser."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser: HttpResponseParser | None = None
        self._take: Take | None = None
        self._done: asyncio.Future[int] | None = None
        self._now_s = 0.0
        self._framed = self._headed = False  # the response says where it ends; its headers are in
        self.idle_since_s = 0.0
        self.reusable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        self._now_s = self._clock.now_s()
        if self._parser is None:
            self.close()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(f"not HTTP: {error!r}")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._headed and not self._framed:
            self.on_message_complete()  # a response without a length ends with its connection
        self._fail("the server closed the connection" if exc is None else f"the connection broke: {exc!r}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        self._headed = True

    def on_body(self, body: bytes) -> None:
        if self._take is not None:
            self._take(body, self._now_s)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._parser.get_status_code())

    async def exchange(self, request: bytes, take: Take) -> int:
        """Send a request; `take` its response's body; return its status. Raises WorkerUnreachable when it breaks off."""
        if self._transport is None or not self.reusable:
            raise WorkerUnreachable("the server closed the connection at once")
        self._parser, self._take = HttpResponseParser(self), take
        self._framed = self._headed = False
        self._done = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            return await self._done
        except BaseException:
            self.close()
            raise
        finally:
            self._parser = self._take = self._done = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, why: str) -> None:
        self.reusable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(WorkerUnreachable(why))


class Connections:
    """As many connections to one place as there are requests under way; idle ones are used again."""

    def __init__(self, place: Place, headers: Mapping[str, str], clock: Clock) -> None:
        self.place = place
        self._clock = clock
        self._idle: list[_Connection] = []
        self._tls = ssl.create_default_context() if place.tls else None
        fields = {"host": place.authority, "accept-encoding": "identity", **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items())

    async def post(self, path: str, body: bytes, take: Take) -> int:
        """POST a JSON body; returns the status. Raises WorkerUnreachable."""
        head = (
            f"POST {self.place.prefix}{path} HTTP/1.1\r\n{self._fields}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return await self._exchange(head.encode("latin-1") + body, take)

    async def get(self, path: str) -> tuple[int, bytes]:
        """GET; returns status and body. Raises WorkerUnreachable."""
        found = bytearray()
        head = f"GET {self.place.prefix}{path} HTTP/1.1\r\n{self._fields}\r\n"
        return await self._exchange(head.encode("latin-1"), lambda data, _: found.extend(data)), bytes(found)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _exchange(self, request: bytes, take: Take) -> int:
        """Nothing is sent twice: a server that drops a request must not look like one that is slow."""
        connection = self._kept() or await self._open()
        status = await connection.exchange(request, take)
        if connection.reusable:
            connection.idle_since_s = self._clock.now_s()
            self._idle.append(connection)
        else:
            connection.close()
        return status

    def _kept(self) -> _Connection | None:
        """An idle connection that the server keeps too, as far as one can know: it may close any that was idle for long."""
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and self._clock.now_s() - connection.idle_since_s <= MAX_IDLE_S:
                return connection
            connection.close()
        return None

    async def _open(self) -> _Connection:
        place, loop = self.place, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._clock), place.host, place.port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise WorkerUnreachable(f"cannot connect to {place.authority}: {error or 'timed out'}") from error
        return connection
