"""The router process: builds the objects, serves HTTP and the registry on one event loop, and drains when told to.

The only place that knows all parts of the router. `python -m router --settings FILE` runs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import uvicorn
import uvloop

from prfaas import rpc
from prfaas.clock import Clock, MonotonicClock
from prfaas.config import PolicySettings, RouterSettings
from prfaas.errors import StartupError
from prfaas.log import logger
from prfaas.metrics import Emitter, MetricSet
from prfaas.pb import registry_pb2_grpc
from prfaas.planner.inputs import HardwareInput, profiled
from prfaas.text import TextModel, load_text_model
from prfaas.types import SiteId
from router.clients import DecodeClients
from router.converter import Converter, GrpcRoleControl
from router.door import Door
from router.fleet import Fleet
from router.gateway.app import create_app
from router.gateway.gate import Gate
from router.http_protocol import GuardedHttpProtocol
from router.pipeline import RoutedPipeline
from router.policy.conversion import ConversionRule
from router.policy.decide import Policy
from router.policy.predictive import PredictivePolicy
from router.policy.short_loop import ShortLoop
from router.policy.threshold import ThresholdPolicy
from router.policy.view import Tuning
from router.registry import RegistryService
from router.replanner import Replanner
from router.tuner import Tuner

_log = logger(__name__)

HOUSEKEEPING_S = 1.0  # how often silent workers are looked for
FORGET_AFTER_S = 60.0  # a worker silent for this long is forgotten; it is not routed to long before
STOP_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class RouterPorts:
    """Where the router listens."""

    http: int
    grpc: int


def run_router(settings: RouterSettings, stop: threading.Event, on_ready: Callable[[RouterPorts], None] | None = None) -> None:
    """Serve until `stop` is set, then drain and return. Blocking; handles no signals.

    Raises:
        StartupError: a port cannot be bound.
        ConfigError: plaintext outside this machine without leave, or unreadable certificates.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, load_text_model(settings.model), stop, on_ready))


def make_policy(settings: PolicySettings) -> Policy:
    """The policy that the settings name."""
    return PredictivePolicy(settings) if settings.name == "predictive" else ThresholdPolicy(settings)


async def _serve(
    settings: RouterSettings,
    text: TextModel,
    stop: threading.Event,
    on_ready: Callable[[RouterPorts], None] | None,
) -> None:
    clock, metrics = MonotonicClock(), MetricSet(Emitter.ROUTER)
    tuning = Tuning(settings.policy.threshold_tokens)
    fleet = Fleet(clock=clock, metrics=metrics, member_timeout_s=settings.member_timeout_s, tuning=tuning)
    fleet.tune(tuning)
    for site, file in settings.policy.profiles.items():
        fleet.speeds.seed(SiteId(site), profiled(file, "hardware", HardwareInput).prefill_s)
    clients = DecodeClients(settings.tls)
    door = Door(fleet=fleet, settings=settings.admission, slo_s=settings.policy.ttft_slo_s, metrics=metrics, clock=clock)
    pipeline = RoutedPipeline(
        fleet=fleet,
        policy=make_policy(settings.policy),
        clients=clients,
        door=door,
        model=settings.served_model_name,
        metrics=metrics,
        clock=clock,
    )
    gate = Gate(settings.limits.max_in_flight, metrics)
    app = create_app(pipeline=pipeline, fleet=fleet, text=text, settings=settings, metrics=metrics, clock=clock, gate=gate)
    registry = rpc.server()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(RegistryService(fleet), registry)  # type: ignore[no-untyped-call]
    grpc_port = rpc.bind(registry, settings.grpc_host, settings.grpc_port, settings.tls)
    listener = listen(settings.host, settings.port)
    http = _Server(
        uvicorn.Config(
            app,
            http=GuardedHttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
    )
    await registry.start()
    tasks = [asyncio.create_task(_keep_house(fleet, clients)), asyncio.create_task(door.run())]
    if settings.policy.adaptive:
        loop = ShortLoop(settings.policy.threshold_tokens, settings.policy.ttft_slo_s)
        tasks.append(asyncio.create_task(Tuner(fleet=fleet, loop=loop, metrics=metrics, clock=clock).run()))
        tasks.append(asyncio.create_task(make_replanner(settings, fleet, loop, metrics, clock).run()))
    try:
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        await _until(lambda: http.started or serving.done())
        if not serving.done():
            _announce(listener, grpc_port, on_ready)
        await _until(lambda: stop.is_set() or serving.done())
        await _drain(gate, settings.drain_timeout_s)
        http.should_exit = True
        await serving
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await clients.close()
        await registry.stop(grace=None)
        listener.close()


def make_replanner(settings: RouterSettings, fleet: Fleet, loop: ShortLoop, metrics: MetricSet, clock: Clock) -> Replanner:
    """The long loop; without a converter where the operator keeps the roles of nodes for himself."""
    policy, converter = settings.policy, None
    if policy.convert_nodes:
        converter = Converter(
            fleet=fleet,
            control=GrpcRoleControl(settings.tls),
            rule=ConversionRule(policy.convert_interval_s),
            drain_s=policy.convert_drain_s,
            metrics=metrics,
            clock=clock,
        )
    return Replanner(fleet=fleet, loop=loop, metrics=metrics, period_s=policy.replan_s, converter=converter)


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises StartupError naming the address when it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024, reuse_port=False)
    except OSError as error:
        raise StartupError(f"cannot listen on {host}:{port}: {error}", what=f"{host}:{port}") from error


def _announce(listener: socket.socket, grpc_port: int, on_ready: Callable[[RouterPorts], None] | None) -> None:
    ports = RouterPorts(http=int(listener.getsockname()[1]), grpc=grpc_port)
    _log.info("serving HTTP on port %d and the registry on port %d", ports.http, ports.grpc)
    if on_ready is not None:
        on_ready(ports)


async def _until(condition: Callable[[], bool]) -> None:
    """Poll: the conditions belong to another thread or library and have nothing to wait on in this loop."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(STOP_POLL_S)


async def _drain(gate: Gate, timeout_s: float) -> None:
    """Refuse new requests and let those inside finish, for at most `timeout_s` seconds."""
    gate.drain()
    _log.info("draining: %d requests inside", gate.inside)
    try:
        await asyncio.wait_for(gate.empty(), timeout_s)
    except TimeoutError:
        _log.warning("gave up draining after %.0f s; %d requests are cut", timeout_s, gate.inside)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the process's owner decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _keep_house(fleet: Fleet, clients: DecodeClients) -> None:
    """Forget workers that fell silent and channels that nobody needs."""
    while True:
        await asyncio.sleep(HOUSEKEEPING_S)
        try:
            fleet.expire(FORGET_AFTER_S)
            addresses = {member.info.address for member in fleet.status().members}
            await clients.retain(frozenset(addresses))
        except Exception:  # noqa: BLE001 -- the loop must outlive one bad round
            _log.exception("housekeeping failed; trying again")
