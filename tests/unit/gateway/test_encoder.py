"""Long texts leave the event loop, short ones do not bother a thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from router.gateway.encoder import INLINE_CHARS, Encoder
from tests.unit.gateway.conftest import Bench


@pytest.fixture
def encoder() -> Iterator[Encoder]:
    encoder = Encoder(num_threads=1)
    yield encoder
    encoder.close()


async def test_the_loop_turns_while_a_long_text_is_worked_on(encoder: Encoder) -> None:
    release = threading.Event()
    working = asyncio.ensure_future(encoder.run(lambda: release.wait(5), chars=INLINE_CHARS + 1))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not working.done()
    release.set()
    assert await working is True


async def test_short_texts_stay_on_the_loops_thread(encoder: Encoder) -> None:
    here = threading.get_ident()
    assert await encoder.run(threading.get_ident, chars=INLINE_CHARS) == here
    assert await encoder.run(threading.get_ident, chars=INLINE_CHARS + 1) != here


async def test_errors_of_the_work_come_through(encoder: Encoder) -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await encoder.run(fail, chars=10**6)


@pytest.mark.parametrize("part", ["messages", "tools", "calls"])
async def test_whatever_makes_a_prompt_long_takes_it_off_the_loop(bench: Bench, part: str) -> None:
    """Also where the template has no tools, and they are put in words."""
    long = "word " * INLINE_CHARS
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": long})}}
    fields: dict[str, Any] = {
        "messages": {"messages": [{"role": "user", "content": long}]},
        "tools": {"tools": [{"type": "function", "function": {"name": "f", "description": long}}]},
        "calls": {"messages": [{"role": "assistant", "tool_calls": [call]}, {"role": "user", "content": "x"}]},
    }[part]
    bench.fleet.context = 1_000_000
    threads: list[int] = []
    render = bench.text.render_chat

    def watched(*args: Any, **kwargs: Any) -> str:
        threads.append(threading.get_ident())
        return render(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bench.text), "render_chat", lambda _, *args, **kwargs: watched(*args, **kwargs))
        assert (await bench.chat(**fields, max_tokens=1)).status_code == 200
        assert (await bench.chat(max_tokens=1)).status_code == 200
    assert threads[0] != threading.get_ident()
    assert threads[1] == threading.get_ident()


async def test_a_long_prompt_is_tokenized_whole(bench: Bench) -> None:
    bench.fleet.context = 1_000_000
    text = "The capital of France. " * 2000
    assert (await bench.chat(messages=[{"role": "user", "content": text}], max_tokens=1)).status_code == 200
    assert text in bench.text.decode(bench.pipeline.requests[0].tokens)
