"""Two ends joined by a transport under test: over gRPC on loopback, or in memory. Knows no checks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from kv_transport.api import PrefillHandler, PrefillTransport
from kv_transport.grpc_client import GrpcPrefillTransport
from kv_transport.grpc_server import serve_transfers
from kv_transport.memory import Faults, MemoryPrefillTransport
from kv_transport.send_service import SendService
from kv_transport.wire import SenderPort
from prfaas import rpc
from prfaas.clock import MonotonicClock
from prfaas.config import TransportSettings
from prfaas.metrics import MetricSet
from prfaas.types import SiteId, WorkerId

SENDER = WorkerId("p0")
SENDER_SITE = SiteId("east")
RECEIVER_SITE = SiteId("west")
NOWHERE = "127.0.0.1:1"  # nobody listens there, in either harness


@dataclass(frozen=True, slots=True)
class Ends:
    """A joined pair. `sender_counters` reads the sending side's accounting, `close_sender` ends that side early,
    `sender` is the raw port behind the transport, for checks that misbehave."""

    transport: PrefillTransport
    address: str
    sender_counters: Callable[[], Mapping[str, float]]
    close_sender: Callable[[], Awaitable[None]]
    sender: SenderPort


class Harness(Protocol):
    """Joins a handler with a transport. Leaving the context closes both ends."""

    def join(self, handler: PrefillHandler, settings: TransportSettings) -> AbstractAsyncContextManager[Ends]: ...


class GrpcHarness:
    """gRPC on loopback; mutual TLS when the settings say so. Metric sets count when they are given."""

    def __init__(self, send_metrics: MetricSet | None = None, receive_metrics: MetricSet | None = None) -> None:
        self._send_metrics = send_metrics
        self._receive_metrics = receive_metrics

    @asynccontextmanager
    async def join(self, handler: PrefillHandler, settings: TransportSettings) -> AsyncIterator[Ends]:
        clock = MonotonicClock()
        server = rpc.server()
        transfers = serve_transfers(
            server, handler, settings, worker_id=SENDER, site=SENDER_SITE, clock=clock, metrics=self._send_metrics
        )
        port = rpc.bind(server, "127.0.0.1", 0, settings.tls)
        await server.start()
        transport = GrpcPrefillTransport(settings, RECEIVER_SITE, clock, self._receive_metrics)
        try:
            address = f"127.0.0.1:{port}"
            yield Ends(transport, address, transfers.counters, transfers.close, transport.sender(address))
        finally:
            await transport.close()
            await transfers.close()
            await server.stop(None)


class MemoryHarness:
    """In memory, through `faults`."""

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        send_metrics: MetricSet | None = None,
        receive_metrics: MetricSet | None = None,
    ) -> None:
        self._faults = faults
        self._send_metrics = send_metrics
        self._receive_metrics = receive_metrics

    @asynccontextmanager
    async def join(self, handler: PrefillHandler, settings: TransportSettings) -> AsyncIterator[Ends]:
        clock = MonotonicClock()
        service = SendService(handler, settings, worker_id=SENDER, site=SENDER_SITE, clock=clock, metrics=self._send_metrics)
        transport = MemoryPrefillTransport(settings, RECEIVER_SITE, clock, self._receive_metrics)
        transport.connect("memory:p0", service, self._faults)
        try:
            yield Ends(transport, "memory:p0", service.counters, service.close, transport.sender("memory:p0"))
        finally:
            await transport.close()
            await service.close()
