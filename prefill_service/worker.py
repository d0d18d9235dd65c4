"""Puts the prefill door together and hangs it on a worker's gRPC server."""

from __future__ import annotations

import grpc.aio

from kv_transport.grpc_server import TransferServer, serve_transfers
from prefill_service.service import Admit, PrefillService
from prfaas.clock import Clock
from prfaas.config import WorkerSettings
from prfaas.engine.api import Engine
from prfaas.metrics import MetricSet
from prfaas.types import SiteId, WorkerId


def serve_prefill(
    server: grpc.aio.Server,
    settings: WorkerSettings,
    *,
    engine: Engine,
    metrics: MetricSet,
    clock: Clock,
    admit: Admit,
) -> TransferServer:
    """Add the transfer methods to a server that has not started. Whether orders are let in is up to `admit`. Close the
    result before the server stops: it releases what receivers have not fetched."""
    service = PrefillService(engine, metrics, admit)
    return serve_transfers(
        server,
        service,
        settings.transport,
        worker_id=WorkerId(settings.worker_id),
        site=SiteId(settings.site),
        clock=clock,
        metrics=metrics,
        reads_block=True,
    )
