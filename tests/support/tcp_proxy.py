"""A TCP proxy on loopback that breaks connections on purpose."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

PIECE_BYTES = 16 * 1024


@dataclass
class Connection:
    """One proxied connection. Bytes count what went from the server to the client."""

    number: int
    passed_bytes: int = 0
    cut_after: int | None = None  # bytes, then both sides are reset
    stall_after: int | None = None  # bytes, then nothing moves any more
    flip_after: int | None = None  # bytes, then one bit is flipped


@dataclass
class Proxy:
    """`plan` is asked about every new connection."""

    target_port: int
    plan: Callable[[Connection], None]
    port: int = 0
    connections: list[Connection] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(len(self.connections))
        self.connections.append(connection)
        self.plan(connection)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        up = asyncio.create_task(self._pass(reader, far_writer, None))
        down = asyncio.create_task(self._pass(far_reader, writer, connection))
        self._tasks |= {up, down}
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            for end in (writer, far_writer):
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: Connection | None) -> None:
        try:
            while data := await reader.read(PIECE_BYTES):
                if connection is not None:
                    data = await self._harm(connection, data)
                    if data is None:
                        return
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            return

    async def _harm(self, connection: Connection, data: bytes) -> bytes | None:
        before, connection.passed_bytes = connection.passed_bytes, connection.passed_bytes + len(data)
        if connection.cut_after is not None and connection.passed_bytes > connection.cut_after:
            return None
        if connection.stall_after is not None and connection.passed_bytes > connection.stall_after:
            await asyncio.Event().wait()
        at = None if connection.flip_after is None else connection.flip_after - before
        if at is not None and 0 <= at < len(data):
            return data[:at] + bytes((data[at] ^ 16,)) + data[at + 1 :]
        return data


@asynccontextmanager
async def proxy_to(port: int, plan: Callable[[Connection], None]) -> AsyncIterator[Proxy]:
    """A proxy in front of 127.0.0.1:`port`."""
    proxy = Proxy(port, plan)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in proxy._tasks:
            task.cancel()
        await asyncio.gather(*proxy._tasks, return_exceptions=True)
