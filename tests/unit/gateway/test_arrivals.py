"""Bodies on their way in: bounded in size, in time, and together."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message, Receive

from prfaas.errors import QueueFull, RequestCancelled
from router.gateway.arrivals import Arrivals, BodyTooLarge, BodyTooSlow, replayed


def parts(*bodies: bytes, ends: bool = True) -> Receive:
    """Receives `bodies`, and then nothing for ever when it does not end."""
    waiting = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    if ends:
        waiting[-1]["more_body"] = False

    async def receive() -> Message:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    return receive


async def test_the_parts_of_a_body_come_out_as_one() -> None:
    assert await Arrivals(limit_bytes=10).body({}, parts(b"abc", b"", b"def")) == b"abcdef"


async def test_a_body_may_fill_the_limit_and_not_pass_it() -> None:
    arrivals = Arrivals(limit_bytes=6)
    assert await arrivals.body({}, parts(b"abc", b"def")) == b"abcdef"
    with pytest.raises(BodyTooLarge):
        await arrivals.body({}, parts(b"abc", b"defg"))


async def test_a_declared_size_is_refused_before_a_byte_is_read() -> None:
    with pytest.raises(BodyTooLarge):
        await Arrivals(limit_bytes=6).body({b"content-length": b"7"}, parts(b"", ends=False))


async def test_a_body_that_does_not_end_is_given_up() -> None:
    with pytest.raises(BodyTooSlow, match=r"within 0\.01 s"):
        await Arrivals(limit_bytes=6, timeout_s=0.01).body({}, parts(b"{", ends=False))


async def test_unfinished_bodies_share_their_room_and_give_it_back() -> None:
    arrivals = Arrivals(limit_bytes=8, arriving_bytes=10)
    slow = asyncio.ensure_future(arrivals.body({}, parts(b"12345678", ends=False)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await arrivals.body({}, parts(b"123"))
    slow.cancel()
    await asyncio.wait([slow])
    assert await arrivals.body({}, parts(b"12345678")) == b"12345678"


async def test_a_client_that_leaves_in_the_middle_is_a_cancelled_request() -> None:
    async def leaves() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(RequestCancelled):
        await Arrivals(limit_bytes=8).body({}, leaves)


async def test_a_replayed_body_comes_first_and_then_the_connection() -> None:
    async def left() -> Message:
        return {"type": "http.disconnect"}

    receive = replayed(b"abc", left)
    assert await receive() == {"type": "http.request", "body": b"abc", "more_body": False}
    assert await receive() == {"type": "http.disconnect"}
