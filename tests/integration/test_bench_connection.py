"""The load generator's HTTP against servers that frame, close and break off in their own ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from prfaas.cli.bench.connection import Connections, Place
from prfaas.clock import MonotonicClock
from prfaas.errors import WorkerUnreachable

Answer = Callable[[int, asyncio.StreamWriter], Awaitable[bool]]  # number of the request; whether the connection stays


@asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[tuple[Connections, list[int]]]:
    """Connections to a server that answers each request; the list has the number of requests of each connection."""
    seen: list[int] = []
    total = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal total
        seen.append(0)
        mine = len(seen) - 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                seen[mine] += 1
                total += 1
                if not await answer(total, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    connections = Connections(Place("127.0.0.1", server.sockets[0].getsockname()[1], False, ""), {}, MonotonicClock())
    try:
        yield connections, seen
    finally:
        connections.close()
        server.close()


async def post(connections: Connections) -> tuple[int, bytes, list[float]]:
    parts: list[bytes] = []
    times: list[float] = []

    def take(data: bytes, now_s: float) -> None:
        parts.append(data)
        times.append(now_s)

    status = await connections.post("/x", b"{}", take)
    return status, b"".join(parts), times


def reply(head: bytes, *parts: bytes, stays: bool = True, pause_s: float = 0.02) -> Answer:
    async def answer(_: int, writer: asyncio.StreamWriter) -> bool:
        writer.write(head)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return stays

    return answer


LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "num_connections"),
    [
        (reply(LENGTH, b"abc", b"def"), 1),
        (reply(CHUNKED, b"3\r\nabc\r\n", b"3\r\nd", b"ef\r\n0\r\n\r\n"), 1),
        (reply(UNTIL_CLOSED, b"abc", b"def", stays=False), 3),
        (reply(LENGTH.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"), b"abcdef", stays=False), 3),
    ],
    ids=["length", "chunked", "until closed", "closed after"],
)
async def test_bodies_in_all_framings(answer: Answer, num_connections: int) -> None:
    async with serving(answer) as (connections, seen):
        for _ in range(3):
            status, body, times = await post(connections)
            assert (status, body) == (200, b"abcdef")
            assert times == sorted(times)
        assert len(seen) == num_connections


async def test_pieces_are_stamped_when_they_come() -> None:
    async with serving(reply(LENGTH, b"abc", b"def", pause_s=0.2)) as (connections, _):
        _, _, (first_s, second_s) = await post(connections)
        assert 0.1 < second_s - first_s < 5


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    async with serving(reply(LENGTH, b"abcdef", pause_s=0, stays=False)) as (connections, seen):
        for _ in range(3):
            assert (await post(connections))[1] == b"abcdef"
            await asyncio.sleep(0.1)
        assert seen == [1, 1, 1]


async def test_one_that_was_idle_for_long_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(reply(LENGTH, b"abcdef", pause_s=0)) as (connections, seen):
        for max_idle_s in (10.0, 10.0, -1.0):
            monkeypatch.setattr("prfaas.cli.bench.connection.MAX_IDLE_S", max_idle_s)
            assert (await post(connections))[1] == b"abcdef"
        assert seen == [2, 1]


async def test_a_dropped_request_is_not_sent_again() -> None:
    async def answer(number: int, writer: asyncio.StreamWriter) -> bool:
        if number == 2:
            return False
        writer.write(LENGTH + b"abcdef")
        await writer.drain()
        return True

    async with serving(answer) as (connections, seen):
        assert (await post(connections))[1] == b"abcdef"
        with pytest.raises(WorkerUnreachable, match="closed the connection"):
            await post(connections)
        assert seen == [2]


@pytest.mark.parametrize(
    "answer",
    [
        reply(LENGTH, b"abc", stays=False),
        reply(CHUNKED, b"3\r\nabc\r\n", stays=False),
        reply(b"", stays=False),
        reply(b"SMTP ready\r\n\r\n", stays=False),
        reply(CHUNKED, b"zz\r\nabc\r\n", stays=False),
    ],
    ids=["short", "no last chunk", "nothing", "not HTTP", "bad chunk"],
)
async def test_what_breaks_off_is_an_error(answer: Answer) -> None:
    async with serving(answer) as (connections, seen):
        with pytest.raises(WorkerUnreachable, match=r"closed the connection|not HTTP"):
            await post(connections)
        assert len(seen) == 1


async def test_a_request_that_is_given_up_takes_its_connection_along() -> None:
    async with serving(reply(LENGTH, b"abc", pause_s=30)) as (connections, _):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await post(connections)
        assert connections._idle == []
