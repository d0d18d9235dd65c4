"""A slow reader gets everything, in order, in larger pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from decode_service.batches import batches
from prfaas.errors import EngineFailed


async def count(stop: int) -> AsyncIterator[int]:
    for number in range(stop):
        yield number


async def test_everything_comes_in_order() -> None:
    got = [batch async for batch in batches(count(100))]
    assert [n for batch in got for n in batch] == list(range(100))
    assert all(got)


async def test_what_piled_up_comes_at_once() -> None:
    ready: asyncio.Queue[int | None] = asyncio.Queue()

    async def items() -> AsyncIterator[int]:
        while (number := await ready.get()) is not None:
            yield number

    async with aclosing(batches(items())) as stream:
        ready.put_nowait(0)
        assert await anext(stream) == [0]
        for number in (1, 2, 3):
            ready.put_nowait(number)
        await asyncio.sleep(0.01)  # the reader is busy elsewhere
        assert await anext(stream) == [1, 2, 3]
        ready.put_nowait(None)
        assert [batch async for batch in stream] == []


async def test_an_error_comes_after_what_was_before_it() -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise EngineFailed("step failed")

    got: list[int] = []

    async def collect() -> None:
        async for batch in batches(items()):
            got.extend(batch)

    with pytest.raises(EngineFailed):
        await collect()
    assert got == [1]


async def test_an_empty_source_ends() -> None:
    assert [batch async for batch in batches(count(0))] == []


async def test_closing_stops_the_source() -> None:
    ended = asyncio.Event()

    async def items() -> AsyncIterator[int]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with aclosing(batches(items())) as stream:
        assert await anext(stream) == [1]
    assert ended.is_set()
