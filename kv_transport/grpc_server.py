"""The sender's gRPC door: streams of raw frames, without a protobuf message around them. Knows no transfer logic."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from kv_transport.api import PrefillHandler
from kv_transport.codecs.base import AsIs
from kv_transport.messages import Finish
from kv_transport.send_service import SendService
from kv_transport.tcp_info import plain_peer
from prfaas import rpc
from prfaas.clock import Clock
from prfaas.config import TransportSettings
from prfaas.errors import InvalidRequest, PrfaasError
from prfaas.metrics import MetricSet
from prfaas.pb import transfer_pb2
from prfaas.types import LinkView, SiteId, TransferId, WorkerId

SERVICE = "prfaas.pb.KvTransfer"
PREFILL = "Prefill"
ATTACH = "Attach"
FINISH = "Finish"
PROBE = "Probe"
READING_THREADS = 2

Context = grpc.aio.ServicerContext[Any, Any]


class TransferServer:
    """The four methods of a prefill worker, on top of a SendService."""

    def __init__(self, service: SendService, readers: Executor | None = None) -> None:
        self._service = service
        self._readers = readers

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the methods; before the server starts."""
        handlers = {
            PREFILL: grpc.unary_stream_rpc_method_handler(self._prefill),
            ATTACH: grpc.unary_stream_rpc_method_handler(self._attach),
            PROBE: grpc.unary_stream_rpc_method_handler(self._probe),
            FINISH: grpc.unary_unary_rpc_method_handler(self._finish),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def counters(self) -> dict[str, float]:
        """Accounting for leak audits, as SendService's."""
        return self._service.counters()

    def links(self) -> tuple[LinkView, ...]:
        """See SendService.links."""
        return self._service.links()

    async def close(self) -> None:
        """Release every transfer. The gRPC server itself belongs to the caller."""
        await self._service.close()
        if self._readers is not None:
            self._readers.shutdown(wait=False, cancel_futures=True)

    async def _prefill(self, request: bytes, context: Context) -> None:
        await self._stream(self._service.prefill(request, plain_peer(context.peer())), context)

    async def _attach(self, request: bytes, context: Context) -> None:
        await self._stream(self._service.attach(request, plain_peer(context.peer())), context)

    async def _probe(self, request: bytes, context: Context) -> None:
        await self._stream(self._service.probe(request, plain_peer(context.peer())), context)

    async def _finish(self, request: bytes, context: Context) -> bytes:
        try:
            message = transfer_pb2.FinishRequest.FromString(request)
        except DecodeError:
            await rpc.abort(context, InvalidRequest("the finish request is not valid protobuf"))
        self._service.finish(Finish(TransferId(message.transfer_id), message.committed, message.reason))
        return transfer_pb2.FinishReply().SerializeToString()

    async def _stream(self, lane: AsyncGenerator[bytes, None], context: Context) -> None:
        await context.send_initial_metadata(())  # tells the receiver at once that somebody is here
        try:
            async with aclosing(lane) as frames:
                async for frame in frames:
                    await context.write(frame)
        except PrfaasError as error:
            await rpc.abort(context, error)


def serve_transfers(
    server: grpc.aio.Server,
    handler: PrefillHandler,
    settings: TransportSettings,
    *,
    worker_id: WorkerId,
    site: SiteId,
    clock: Clock,
    metrics: MetricSet | None = None,
    reads_block: bool = False,
) -> TransferServer:
    """Add the transfer methods to a server that has not started yet. Call on the event loop; close the result before
    stopping the server. `reads_block`: the sources' `read` may wait, for a lock or for a device."""
    # Waiting or coding takes milliseconds, which the event loop does not have; framing bytes that are there takes less.
    threaded = reads_block or settings.wire_codec != AsIs.name
    readers = ThreadPoolExecutor(READING_THREADS, "kv-read") if threaded else None
    service = SendService(handler, settings, worker_id=worker_id, site=site, clock=clock, metrics=metrics, readers=readers)
    transfers = TransferServer(service, readers)
    transfers.add_to(server)
    return transfers
