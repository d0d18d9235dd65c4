"""The whole router as `run_router` builds it: HTTP in front, the registry's gRPC behind, a scripted decode worker."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import httpx
import pytest

from prfaas import rpc
from prfaas.cache.hashing import hash_blocks
from prfaas.config import RouterSettings, TlsSettings
from prfaas.convert import to_pb_cache_event, to_pb_worker_info, to_pb_worker_load
from prfaas.errors import InvalidRequest, StartupError
from prfaas.pb import decode_pb2, registry_pb2, registry_pb2_grpc
from prfaas.types import CacheEvent, CacheEventKind, CacheTier, Role, WorkerInfo, WorkerLoad
from router.main import RouterPorts, run_router
from tests.support.router_fleet import Call, ScriptedDecode, answer_well, eventually, serving, worker_info
from tests.support.text_models import write_text_model


@pytest.fixture
def settings(tmp_path: Path) -> RouterSettings:
    return RouterSettings(
        port=0,
        model=str(write_text_model(tmp_path / "text")),
        served_model_name="m",
        member_timeout_s=60.0,
        drain_timeout_s=5.0,
    )


class Running:
    """A router on a thread of this process, an HTTP client and a registry stub to it."""

    def __init__(self, ports: RouterPorts, stop: threading.Event, thread: threading.Thread) -> None:
        self.ports, self.stop, self.thread = ports, stop, thread
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports.http}", timeout=10)
        self.channel = rpc.channel(f"127.0.0.1:{ports.grpc}", TlsSettings())
        self.registry = registry_pb2_grpc.RegistryServiceStub(self.channel)

    async def join(self, info: WorkerInfo) -> None:
        await self.registry.Register(to_pb_worker_info(info))

    async def beat(self, info: WorkerInfo, load: WorkerLoad | None = None, *events: CacheEvent) -> registry_pb2.HeartbeatReply:
        return await self.registry.Heartbeat(
            registry_pb2.HeartbeatRequest(
                worker_id=info.worker_id,
                incarnation=info.incarnation,
                load=to_pb_worker_load(load or WorkerLoad(free_blocks=100_000)),
                cache_events=[to_pb_cache_event(e) for e in events],
            )
        )

    async def complete(self, prompt: str | list[int], **fields: object) -> httpx.Response:
        return await self.http.post("/v1/completions", json={"model": "m", "prompt": prompt, "max_tokens": 2, **fields})


@asynccontextmanager
async def running(settings: RouterSettings) -> AsyncIterator[Running]:
    ready: queue.Queue[RouterPorts] = queue.Queue()
    stop = threading.Event()
    thread = threading.Thread(target=run_router, args=(settings, stop, ready.put), daemon=True)
    thread.start()
    router = Running(await asyncio.to_thread(ready.get, timeout=20), stop, thread)
    try:
        yield router
    finally:
        await router.http.aclose()
        await router.channel.close()
        stop.set()
        await asyncio.to_thread(thread.join, 20)
        assert not thread.is_alive()


async def test_a_completion_travels_from_http_to_a_registered_worker_and_back(settings: RouterSettings) -> None:
    async with running(settings) as router, serving(answer_well) as worker:
        assert (await router.http.get("/health")).status_code == 503
        await router.join(worker_info("d1", address=worker.address))
        assert (await router.http.get("/health")).status_code == 200
        answer = await router.complete([5, 6, 7])
        assert answer.status_code == 200
        assert answer.json()["usage"]["prompt_tokens"] == 3
        assert answer.headers["x-prfaas-route"].startswith("inline")
        assert tuple(worker.calls[0].request.tokens) == (5, 6, 7)
        metrics = (await router.http.get("/metrics")).text
        assert 'prfaas_routed_requests_total{outcome="finished",reason="finished"} 1.0' in metrics


async def test_cache_news_reach_the_decision_and_a_gap_is_mended_by_a_snapshot(settings: RouterSettings) -> None:
    prompt = list(range(10, 90))
    names = hash_blocks(prompt, 16)
    stored = CacheEvent(7, CacheEventKind.STORED, "attn", CacheTier.DEVICE, tuple(names))
    async with running(settings) as router, serving(answer_well) as worker:
        info = worker_info("d1", address=worker.address)
        await router.join(info)
        assert (await router.beat(info, None, stored)).resync_cache
        await router.complete(prompt)
        await router.registry.PutCacheSnapshot(
            registry_pb2.CacheSnapshot(
                worker_id="d1", incarnation=info.incarnation, next_seq=8, contents=[to_pb_cache_event(stored)]
            )
        )
        assert not (await router.beat(info)).resync_cache
        await router.complete(prompt)
        assert [call.decision.uncached_tokens for call in worker.calls] == [80, 16]


async def test_a_worker_that_the_router_does_not_know_is_told_to_register(settings: RouterSettings) -> None:
    async with running(settings) as router:
        info = worker_info("d1")
        assert not (await router.beat(info)).known
        await router.join(info)
        assert (await router.beat(info)).known
        assert not (await router.beat(worker_info("d1", incarnation="2"))).known
        await router.registry.Deregister(registry_pb2.DeregisterRequest(worker_id="d1", incarnation=info.incarnation))
        assert not (await router.beat(info)).known


async def test_a_registration_that_makes_no_sense_is_refused_with_a_typed_error(settings: RouterSettings) -> None:
    async with running(settings) as router:
        message = to_pb_worker_info(worker_info("d1"))
        message.role = "boss"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await router.registry.Register(message)
        assert rpc.from_rpc(caught.value).code == InvalidRequest.code


async def test_losing_the_prefill_workers_is_reduced_capacity_not_an_outage(settings: RouterSettings) -> None:
    async with running(settings) as router, serving(answer_well) as worker:
        await router.join(worker_info("d1", address=worker.address))
        far = worker_info("p1", Role.PREFILL, "far")
        await router.join(far)
        assert not (await router.http.get("/health")).json()["reduced"]
        await router.beat(far, WorkerLoad(draining=True))
        health = await router.http.get("/health")
        assert (health.status_code, health.json()["reduced"]) == (200, True)


async def test_a_stop_lets_running_requests_finish_and_refuses_new_ones(settings: RouterSettings) -> None:
    go = asyncio.Event()

    async def wait(worker: ScriptedDecode, call: Call) -> AsyncIterator[decode_pb2.GenerateEvent]:
        await go.wait()
        async for event in answer_well(worker, call):
            yield event

    async with running(settings) as router, serving(wait) as worker:
        await router.join(worker_info("d1", address=worker.address))
        inside = asyncio.create_task(router.complete([1, 2]))
        await eventually(lambda: bool(worker.calls))
        router.stop.set()
        async with asyncio.timeout(5):
            while (await router.http.get("/health")).status_code == 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert (await router.complete([3, 4])).status_code == 503
        go.set()
        assert (await inside).status_code == 200


async def test_a_client_that_leaves_cancels_the_worker(settings: RouterSettings) -> None:
    async def stuck(_: ScriptedDecode, call: Call) -> AsyncIterator[decode_pb2.GenerateEvent]:
        await asyncio.sleep(3600)
        yield decode_pb2.GenerateEvent()

    async with running(settings) as router, serving(stuck) as worker:
        await router.join(worker_info("d1", address=worker.address))
        body = {"model": "m", "prompt": [1, 2], "max_tokens": 2}
        with pytest.raises(httpx.ReadTimeout):
            await router.http.post("/v1/completions", json=body, timeout=0.5)
        await asyncio.wait_for(worker.cancelled.wait(), 5)


def test_a_port_that_is_taken_is_a_startup_error(settings: RouterSettings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = settings.model_copy(update={"port": taken.getsockname()[1]})
        with pytest.raises(StartupError, match="cannot listen"):
            run_router(busy, threading.Event())


def test_the_process_starts_from_a_file_and_ends_on_sigterm(settings: RouterSettings, tmp_path: Path) -> None:
    file = tmp_path / "router.json"
    file.write_text(json.dumps(settings.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "router", "--settings", str(file)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "serving HTTP" in line:
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.stderr.close()


def test_bad_settings_end_the_process_with_a_message(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("model: x\nserved_model_name: m\nprot: 1\n")
    done = subprocess.run(
        [sys.executable, "-m", "router", "--settings", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2  # what an operator must change, as for a worker
    assert "prot" in done.stderr
