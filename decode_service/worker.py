"""Puts the decode door together and hangs it on a worker's gRPC server."""

from __future__ import annotations

import grpc.aio

from decode_service.ladder import LadderTerms, PrefillLadder
from decode_service.service import Admit, DecodeService
from kv_transport.api import PrefillTransport
from kv_transport.codecs.registry import accepted_codecs
from prfaas.clock import Clock
from prfaas.config import WorkerSettings
from prfaas.engine.api import Engine
from prfaas.metrics import MetricSet
from prfaas.pb import decode_pb2_grpc
from prfaas.types import SiteId, WorkerId


def serve_decode(
    server: grpc.aio.Server,
    settings: WorkerSettings,
    *,
    engine: Engine,
    transport: PrefillTransport,
    metrics: MetricSet,
    clock: Clock,
    admit: Admit,
) -> DecodeService:
    """Add DecodeService to a server that has not started; to be closed before the server. `admit` says who is let in."""
    worker_id = WorkerId(settings.worker_id)
    terms = LadderTerms(
        worker_id=worker_id,
        site=SiteId(settings.site),
        attempt_timeout_s=settings.prefill_attempt_timeout_s,
        codecs=accepted_codecs(settings.transport.wire_codec),
        max_lanes=settings.transport.max_lanes,
    )
    ladder = PrefillLadder(engine, transport, terms, metrics, clock)
    service = DecodeService(ladder, model=settings.served_model_name, worker_id=worker_id, clock=clock, admit=admit)
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    return service
