"""Keeps tokenizing off the event loop, so that a long prompt never stalls other people's streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# Short texts tokenize faster than a thread can be woken.
INLINE_CHARS = 2048


class Encoder:
    """A few threads for text work. The tokenizer releases the interpreter lock, so they run beside the event loop.

    The number of waiting jobs is bounded by the number of requests the gateway lets in.
    """

    def __init__(self, num_threads: int = 2) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="encode")

    async def run(self, work: Callable[[], T], *, chars: int) -> T:
        """Do `work`, on a thread if it handles more than a little text (`chars` is its size)."""
        if chars <= INLINE_CHARS:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let running jobs finish and stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)
