"""The router's side of registration, written down: what workers say of themselves, and what they are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from prfaas import rpc
from prfaas.config import TlsSettings
from prfaas.convert import from_pb_worker_info
from prfaas.pb import registry_pb2, registry_pb2_grpc
from prfaas.types import WorkerInfo

PLAIN = TlsSettings()


class Router(registry_pb2_grpc.RegistryServiceServicer):
    """A registry that writes down what it hears; `forget` and `resync` steer its next answer."""

    def __init__(self, heartbeat_s: float = 0.0) -> None:
        self.heartbeat_s = heartbeat_s
        self.registered: list[WorkerInfo] = []
        self.heartbeats: list[registry_pb2.HeartbeatRequest] = []
        self.snapshots: list[registry_pb2.CacheSnapshot] = []
        self.goodbyes: list[registry_pb2.DeregisterRequest] = []
        self.forget = self.resync = False

    async def Register(self, request: registry_pb2.WorkerInfo, context: Any) -> registry_pb2.RegisterReply:
        self.registered.append(from_pb_worker_info(request))
        return registry_pb2.RegisterReply(heartbeat_s=self.heartbeat_s)

    async def Heartbeat(self, request: registry_pb2.HeartbeatRequest, context: Any) -> registry_pb2.HeartbeatReply:
        self.heartbeats.append(request)
        reply = registry_pb2.HeartbeatReply(known=bool(self.registered) and not self.forget, resync_cache=self.resync)
        self.forget = self.resync = False
        return reply

    async def PutCacheSnapshot(self, request: registry_pb2.CacheSnapshot, context: Any) -> registry_pb2.SnapshotReply:
        self.snapshots.append(request)
        return registry_pb2.SnapshotReply()

    async def Deregister(self, request: registry_pb2.DeregisterRequest, context: Any) -> registry_pb2.DeregisterReply:
        self.goodbyes.append(request)
        return registry_pb2.DeregisterReply()


@asynccontextmanager
async def serving(router: Router, port: int = 0, tls: TlsSettings = PLAIN) -> AsyncIterator[int]:
    server = rpc.server()
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(router, server)  # type: ignore[no-untyped-call]
    bound = rpc.bind(server, "127.0.0.1", port, tls)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)
