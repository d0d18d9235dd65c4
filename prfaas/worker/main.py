"""One worker process from start to stop: builds the engine, serves its doors, keeps the router informed.

Blocking and free of signals, so that a process, a thread of a Ray actor and a test run the same function. All times
of a worker come from one clock, all its metrics go into one set; both are made here.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import start_http_server

from decode_service.worker import serve_decode
from kv_transport.allocator import tune_allocator
from kv_transport.api import PrefillTransport
from kv_transport.grpc_client import GrpcPrefillTransport
from prefill_service.worker import serve_prefill
from prfaas import rpc
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import WorkerSettings
from prfaas.engine.api import Engine
from prfaas.engine.factory import build_engine, device_of
from prfaas.errors import ConfigError
from prfaas.log import logger
from prfaas.metrics import Emitter, MetricSet
from prfaas.pb import registry_pb2_grpc
from prfaas.types import Role, SiteId, WorkerId, WorkerInfo
from prfaas.worker.control import WorkerService
from prfaas.worker.gate import Gate
from prfaas.worker.node import Doors, Node, cache_groups
from prfaas.worker.registration import Registration
from prfaas.worker.stopping import following

SERVER_GRACE_S = 1.0

log = logger(__name__)


def run_worker(settings: WorkerSettings, stop: threading.Event) -> None:
    """Serve until `stop` is set, then drain (at most `settings.drain_timeout_s`) and free everything.

    Raises ConfigError, ModelLoadError or StartupError when the worker cannot start.
    """
    _require_reachable(settings.host)
    tune_allocator()
    metrics = MetricSet(Emitter.WORKER)
    clock = MonotonicClock()
    engine = build_engine(
        settings.engine, source=settings.model, served_name=settings.served_model_name, metrics=metrics, clock=clock
    )
    with _metrics_endpoint(settings, metrics):
        asyncio.run(_run(settings, engine, metrics, clock, stop))


def _require_reachable(host: str) -> None:
    """The bound address is also the advertised one, so it must lead here from elsewhere. Raises ConfigError."""
    if host in ("", "0.0.0.0", "::"):
        raise ConfigError(f"host = {host!r} can be bound but not called by others; set the address that they reach", host=host)


@contextmanager
def _metrics_endpoint(settings: WorkerSettings, metrics: MetricSet) -> Iterator[None]:
    if settings.metrics_port is None:
        yield
        return
    server, thread = start_http_server(settings.metrics_port, addr=settings.host, registry=metrics.registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def _run(settings: WorkerSettings, engine: Engine, metrics: MetricSet, clock: Clock, stop: threading.Event) -> None:
    transport = GrpcPrefillTransport(settings.transport, site=SiteId(settings.site), clock=clock, metrics=metrics)
    try:
        await _serve(settings, engine, transport, metrics, clock, stop)
    finally:
        await transport.close()
        await engine.close()


async def _serve(
    settings: WorkerSettings,
    engine: Engine,
    transport: PrefillTransport,
    metrics: MetricSet,
    clock: Clock,
    stop: threading.Event,
) -> None:
    news = asyncio.Event()
    # What a request leaves in the cache is news: a conversation's next turn may be on its way already.
    doors = Doors(prefill=Gate("prefill", left=news.set), decode=Gate("decode", left=news.set))
    server = rpc.server()
    port = rpc.bind(server, settings.host, settings.port, settings.transport.tls)
    sender = serve_prefill(server, settings, engine=engine, metrics=metrics, clock=clock, admit=doors.prefill.admit)
    decode = serve_decode(
        server,
        settings,
        engine=engine,
        transport=transport,
        metrics=metrics,
        clock=clock,
        admit=doors.decode.admit,
    )
    node = Node(_describe(settings, engine, port), doors, engine=engine, transport=transport, sender=sender, news=news)
    registry_pb2_grpc.add_WorkerServiceServicer_to_server(WorkerService(node), server)  # type: ignore[no-untyped-call]
    await server.start()
    try:
        await _stay_registered(settings, node, news, stop)
    finally:
        await sender.close()
        decode.close()
        await server.stop(SERVER_GRACE_S)


async def _stay_registered(settings: WorkerSettings, node: Node, news: asyncio.Event, stop: threading.Event) -> None:
    """From the first registration to the goodbye; while draining the router still hears of this worker."""
    async with rpc.channel(settings.router_address, settings.transport.tls) as channel:
        registration = Registration(channel, node, heartbeat_s=settings.heartbeat_s, news=news)
        async with following(stop) as stopped, asyncio.TaskGroup() as tasks:
            registering = tasks.create_task(registration.run(), name="registration")
            await stopped.wait()
            unfinished = await node.drain(settings.drain_timeout_s)
            if unfinished:
                log.warning("stopping with %d calls unfinished after %.0f s", unfinished, settings.drain_timeout_s)
            registering.cancel()
        await registration.deregister()


def _describe(settings: WorkerSettings, engine: Engine, port: int) -> WorkerInfo:
    spec = engine.spec
    return WorkerInfo(
        worker_id=WorkerId(settings.worker_id),
        incarnation=uuid.uuid4().hex,
        site=SiteId(settings.site),
        role=Role(settings.role),
        address=f"[{settings.host}]:{port}" if ":" in settings.host else f"{settings.host}:{port}",
        model=settings.served_model_name,
        fingerprint_digest=spec.fingerprint.digest,
        max_context_tokens=spec.max_context_tokens,
        block_tokens=spec.cache.block_tokens,
        total_blocks=int(engine.counters()["blocks_total"]),
        max_running=settings.engine.max_running,
        device=device_of(settings.engine),
        cache_groups=cache_groups(engine),
    )
