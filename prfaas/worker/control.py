"""The gRPC service through which a router or an operator controls one worker."""

from __future__ import annotations

from typing import Any

import grpc.aio

from prfaas.convert import to_pb_worker_info, to_pb_worker_load
from prfaas.errors import InvalidRequest
from prfaas.pb import registry_pb2, registry_pb2_grpc
from prfaas.rpc import abort
from prfaas.types import Role
from prfaas.worker.node import Node

Context = grpc.aio.ServicerContext[Any, Any]


class WorkerService(registry_pb2_grpc.WorkerServiceServicer):
    """Drain, SetRole and Status over a node."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Drain(self, request: registry_pb2.DrainRequest, context: Context) -> registry_pb2.DrainReply:
        """Take no new work; answers when what was inside is done or the time is up."""
        return registry_pb2.DrainReply(unfinished=await self._node.drain(request.timeout_s))

    async def SetRole(self, request: registry_pb2.SetRoleRequest, context: Context) -> registry_pb2.SetRoleReply:
        """Drain, then serve in another role. Ends with InvalidRequest for a role that does not exist."""
        if request.role not in list(Role):
            known = ", ".join(Role)
            await abort(context, InvalidRequest(f"role is {request.role!r}; it must be one of: {known}", param="role"))
        unfinished = await self._node.set_role(Role(request.role), request.drain_timeout_s)
        return registry_pb2.SetRoleReply(unfinished=unfinished)

    async def Status(self, request: registry_pb2.StatusRequest, context: Context) -> registry_pb2.StatusReply:
        """Who this worker is, how busy, and the accounting that a leak audit adds up."""
        return registry_pb2.StatusReply(
            info=to_pb_worker_info(self._node.info()),
            load=to_pb_worker_load(self._node.load()),
            counters=dict(self._node.counters()),
        )
