"""A stop event set in any thread is seen in the loop."""

from __future__ import annotations

import asyncio
import threading

from prfaas.worker.stopping import following


async def test_the_loop_sees_what_another_thread_sets() -> None:
    stop = threading.Event()
    async with following(stop) as stopped:
        assert not stopped.is_set()
        threading.Thread(target=stop.set).start()
        await asyncio.wait_for(stopped.wait(), 5.0)


async def test_leaving_early_ends_the_watch() -> None:
    before = threading.active_count()
    async with following(threading.Event()):
        assert threading.active_count() == before + 1
    assert not [thread for thread in threading.enumerate() if thread.name == "stop-watch"]
