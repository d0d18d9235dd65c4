"""The registry's gRPC door: turns workers' messages into calls on the fleet. Holds no state and decides nothing."""

from __future__ import annotations

from typing import Any

import grpc.aio

from prfaas import rpc
from prfaas.convert import from_pb_cache_event, from_pb_link_view, from_pb_worker_info, from_pb_worker_load
from prfaas.errors import PrfaasError
from prfaas.pb import registry_pb2, registry_pb2_grpc
from prfaas.types import WorkerId
from router.fleet import Fleet

HEARTBEAT_S = 0.5  # how often workers are asked to report

Context = grpc.aio.ServicerContext[Any, Any]


class RegistryService(registry_pb2_grpc.RegistryServiceServicer):
    """Implements prfaas.pb.RegistryService over a `Fleet`. Calls never wait, so the fleet needs no lock."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def Register(self, request: registry_pb2.WorkerInfo, context: Context) -> registry_pb2.RegisterReply:
        """Raises InvalidRequest (as a status) for a role or cache group kind that this version does not know."""
        try:
            self._fleet.register(from_pb_worker_info(request))
        except PrfaasError as error:
            await rpc.abort(context, error)
        return registry_pb2.RegisterReply(heartbeat_s=HEARTBEAT_S)

    async def Heartbeat(self, request: registry_pb2.HeartbeatRequest, context: Context) -> registry_pb2.HeartbeatReply:
        try:
            answer = self._fleet.heartbeat(
                WorkerId(request.worker_id),
                request.incarnation,
                from_pb_worker_load(request.load),
                [from_pb_cache_event(event) for event in request.cache_events],
                [from_pb_link_view(view) for view in request.links],
            )
        except PrfaasError as error:
            await rpc.abort(context, error)
        return registry_pb2.HeartbeatReply(known=answer.known, resync_cache=answer.resync)

    async def PutCacheSnapshot(self, request: registry_pb2.CacheSnapshot, context: Context) -> registry_pb2.SnapshotReply:
        """A snapshot of a worker that is not registered is dropped; its next heartbeat tells it to register."""
        try:
            self._fleet.put_snapshot(
                WorkerId(request.worker_id),
                request.incarnation,
                request.next_seq,
                [from_pb_cache_event(event) for event in request.contents],
                continued=request.continued,
                unfinished=request.unfinished,
            )
        except PrfaasError as error:
            await rpc.abort(context, error)
        return registry_pb2.SnapshotReply()

    async def Deregister(self, request: registry_pb2.DeregisterRequest, context: Context) -> registry_pb2.DeregisterReply:
        self._fleet.deregister(WorkerId(request.worker_id), request.incarnation)
        return registry_pb2.DeregisterReply()
