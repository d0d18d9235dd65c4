"""Long texts leave the event loop, short ones do not bother a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

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


async def test_a_long_prompt_is_tokenized_whole(bench: Bench) -> None:
    bench.fleet.context = 1_000_000
    text = "The capital of France. " * 2000
    assert (await bench.chat(messages=[{"role": "user", "content": text}], max_tokens=1)).status_code == 200
    assert text in bench.text.decode(bench.pipeline.requests[0].tokens)
