"""A worker's life: start, drain, conversion, a router that comes and goes, stop. Nobody's request is lost on the way."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import grpc.aio
import pytest

from prfaas import rpc
from prfaas.cli.ports import free_port
from prfaas.errors import Draining, InvalidRequest
from prfaas.pb import registry_pb2
from prfaas.types import Role, Route
from prfaas.worker.main import run_worker
from tests.support.emulated_hybrid import BLOCK_TOKENS
from tests.support.registry import Router, serving
from tests.support.waiting import until
from tests.support.worker_processes import Answer, Client, Worker, fleet, greedy, prompt

pytestmark = [pytest.mark.e2e]

QUICK = {"time_scale": 0.2}
STEADY = greedy(prompt(64, seed=2), request_id="steady", max_tokens=300)  # a quarter of a second at least


async def begun(worker: Worker, answer: Answer) -> asyncio.Task[None]:
    """A request whose first tokens have come, reading on in the background."""
    call = worker.call(STEADY)
    reading = asyncio.create_task(answer.hear_all(call))
    await until(lambda: answer.outputs)
    return reading


async def set_role(worker: Worker, role: str, drain_timeout_s: float = 10.0) -> int:
    message = registry_pb2.SetRoleRequest(role=role, drain_timeout_s=drain_timeout_s)
    return int((await worker.control.SetRole(message)).unfinished)


async def test_a_drain_lets_what_runs_finish_and_nothing_else_in(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        decode = await workers.start("decode", Role.DECODE)
        answer = Answer()
        reading = await begun(decode, answer)
        draining = asyncio.create_task(_drain(decode, 20.0))
        await until(lambda: workers.router.heartbeats[-1].load.draining)
        with pytest.raises(Draining):
            await decode.generate(greedy(prompt(10), request_id="late"))
        assert await draining == 0
        await reading
        assert len(answer.tokens) == 300
        await decode.settled()


async def _drain(worker: Worker, timeout_s: float) -> int:
    return int((await worker.control.Drain(registry_pb2.DrainRequest(timeout_s=timeout_s))).unfinished)


async def test_a_drain_that_takes_too_long_says_how_many_are_left(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        decode = await workers.start("decode", Role.DECODE)
        answer = Answer()
        reading = await begun(decode, answer)
        assert await _drain(decode, 0.0) == 1
        await reading
        assert len(answer.tokens) == 300


async def test_sigterm_finishes_what_runs_says_goodbye_and_ends(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        decode = await workers.start("decode", Role.DECODE)
        answer = Answer()
        reading = await begun(decode, answer)
        decode.terminate()
        await reading
        assert len(answer.tokens) == 300
        assert await decode.ended() == 0
        assert [goodbye.worker_id for goodbye in workers.router.goodbyes] == ["decode"]
        assert any(heartbeat.load.draining for heartbeat in workers.router.heartbeats)


async def test_a_prefill_worker_that_stops_finishes_its_transfers(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        far, decode = await asyncio.gather(
            workers.start("far", Role.PREFILL, "prefill-dc", engine={"time_scale": 1.0}),
            workers.start("decode", Role.DECODE),
        )
        asked = greedy(prompt(1000, seed=3), request_id="r")
        running = asyncio.create_task(decode.generate(asked, far.candidate(Route.REMOTE)))
        await decode.received_bytes()
        far.terminate()
        answer = await running
        assert (answer.report.route, answer.report.attempts) == (Route.REMOTE, ())
        assert await far.ended() == 0


async def test_a_converted_node_prefills_with_the_cache_it_had(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        node, decode = await asyncio.gather(workers.start("node", Role.DECODE), workers.start("decode", Role.DECODE))
        tokens = prompt(320, seed=6)
        before = await node.generate(greedy(tokens, request_id="before"))
        seen = len(workers.router.registered)
        assert await set_role(node, "pd_prefill") == 0
        await until(lambda: len(workers.router.registered) > seen)
        again = workers.router.registered[-1]
        assert (again.worker_id, again.role) == ("node", Role.PD_PREFILL)
        assert again.incarnation == node.info.incarnation
        answer = await decode.generate(greedy(tokens, request_id="after"), node.candidate(Route.LOCAL))
        assert answer.tokens == before.tokens
        assert (answer.report.route, answer.report.cached_tokens) == (Route.LOCAL, 304)  # whole blocks below the last token
        with pytest.raises(Draining):
            await node.generate(greedy(tokens, request_id="closed"))
        assert await set_role(node, "decode") == 0
        assert (await node.generate(greedy(tokens, request_id="back"))).tokens == before.tokens
        await node.settled()
        await decode.settled()


async def test_a_worker_runs_in_a_thread_as_well(tmp_path: Path) -> None:
    """As in an actor of a pool, whose own event loop is busy with other things."""
    async with fleet(tmp_path, engine=QUICK) as workers:
        stop = threading.Event()
        settings = workers.settings("decode", Role.DECODE)
        thread = threading.Thread(target=run_worker, args=(settings, stop))
        thread.start()
        try:
            await until(lambda: workers.router.heartbeats, 30.0)
            address = workers.router.registered[0].address
            async with rpc.channel(address, settings.transport.tls) as channel:
                decode = Client(workers.router.registered[0], channel)
                assert len((await decode.generate(greedy(prompt(50)))).tokens) == 8
        finally:
            stop.set()
            await asyncio.to_thread(thread.join, 20.0)
        assert not thread.is_alive()
        assert len(workers.router.goodbyes) == 1


async def test_an_unknown_role_changes_nothing(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        decode = await workers.start("decode", Role.DECODE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await set_role(decode, "boss")
        error = rpc.from_rpc(caught.value)
        assert isinstance(error, InvalidRequest)
        assert error.param == "role"
        assert (await decode.status()).info.role == "decode"
        assert (await decode.generate(greedy(prompt(10)))).tokens


async def test_a_worker_serves_on_while_the_router_is_away_and_finds_its_successor(tmp_path: Path) -> None:
    first, second, port = Router(), Router(), free_port()
    async with fleet(tmp_path, engine=QUICK) as workers:
        async with serving(first, port):
            process = workers.spawn("decode", Role.DECODE, router_address=f"127.0.0.1:{port}")
            await until(lambda: first.heartbeats, 30.0)
        decode = await workers.connect(process, first.registered[0])
        answer = await decode.generate(greedy(prompt(200, seed=8)))
        assert len(answer.tokens) == 8
        async with serving(second, port):
            await until(lambda: second.snapshots)
        assert second.registered == first.registered
        stored = {hash_ for event in second.snapshots[0].contents for hash_ in event.hashes}
        assert len(stored) >= 200 // BLOCK_TOKENS  # what was cached while nobody listened is in the snapshot
        await decode.settled()


async def test_a_worker_may_start_before_its_router(tmp_path: Path) -> None:
    router, port = Router(), free_port()
    async with fleet(tmp_path, engine=QUICK) as workers:
        process = workers.spawn("decode", Role.DECODE, router_address=f"127.0.0.1:{port}")
        await until(lambda: "cannot be reached" in workers.log("decode"), 30.0)
        async with serving(router, port):
            await until(lambda: router.heartbeats)
        assert process.poll() is None


async def test_a_port_in_use_is_said_plainly(tmp_path: Path) -> None:
    async with serving(Router()) as taken, fleet(tmp_path, engine=QUICK) as workers:
        process = workers.spawn("decode", Role.DECODE, port=taken)
        await until(lambda: process.poll() is not None, 20.0)
        assert process.returncode == 2
        assert f"127.0.0.1:{taken}" in workers.log("decode")


async def test_a_worker_ends_with_the_parent_that_holds_its_standard_input(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine=QUICK) as workers:
        decode = await workers.start("decode", Role.DECODE, arguments=("--watch-stdin",))
        answer = Answer()
        reading = await begun(decode, answer)
        assert decode.process.stdin is not None
        decode.process.stdin.close()  # as the end of the parent does, however it ends
        assert await decode.ended() == 0
        await reading
        assert len(answer.tokens) == 300
        assert len(workers.router.goodbyes) == 1


async def test_asking_twice_to_stop_does_not_wait_for_the_drain(tmp_path: Path) -> None:
    async with fleet(tmp_path, engine={"time_scale": 1.0}) as workers:
        decode = await workers.start("decode", Role.DECODE)
        call = decode.call(greedy(prompt(4000), request_id="long"))
        await decode.reached("computing", sequences_running=1)
        decode.terminate()
        await until(lambda: workers.router.heartbeats[-1].load.draining)
        assert decode.process.poll() is None
        decode.terminate()
        assert await decode.ended(2.0) != 0
        call.cancel()


def _main(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prfaas.worker", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"worker_id": "w", "rolle": "decode"}))
    ended = _main("--settings", str(path))
    assert ended.returncode == 2
    assert "rolle" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_an_address_nobody_can_call_is_refused_before_anything_is_loaded(tmp_path: Path, host: str) -> None:
    async with fleet(tmp_path) as workers:
        process = workers.spawn("decode", Role.DECODE, host=host)
        await until(lambda: process.poll() is not None, 20.0)
        assert process.returncode == 2
        assert host in workers.log("decode")


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    ended = _main("--settings", str(tmp_path / "nowhere.json"))
    assert ended.returncode == 2
    assert "nowhere.json" in ended.stderr
