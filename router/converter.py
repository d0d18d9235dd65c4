"""Carries out changes of role: tells a worker through its control service, and shows it as converting meanwhile.

Contains no policy. The worker drains, closes one door and opens the other with its weights in place, and registers again
under its new role; a change that fails leaves it in its old one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import grpc.aio

from prfaas import metrics as m
from prfaas import rpc
from prfaas.clock import Clock
from prfaas.config import TlsSettings
from prfaas.errors import PrfaasError
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.pb import registry_pb2, registry_pb2_grpc
from prfaas.types import Role, SiteId
from router.fleet import Fleet
from router.policy.conversion import Change, ConversionRule

_log = logger(__name__)

ANSWER_GRACE_S = 5.0  # beyond the drain


class RoleControl(Protocol):
    """What changes the role of a worker."""

    async def set_role(self, change: Change, drain_s: float) -> int:
        """Returns how many calls were still inside the old door after `drain_s`; they go on. Raises PrfaasError."""
        ...


class GrpcRoleControl:
    """Implements `RoleControl` over the workers' control service. A cancelled call is undone by the worker."""

    def __init__(self, tls: TlsSettings) -> None:
        self._tls = tls

    async def set_role(self, change: Change, drain_s: float) -> int:
        message = registry_pb2.SetRoleRequest(role=change.role, drain_timeout_s=drain_s)
        async with rpc.channel(change.address, self._tls) as channel:
            stub = registry_pb2_grpc.WorkerServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                return int((await stub.SetRole(message, timeout=drain_s + ANSWER_GRACE_S)).unfinished)
            except grpc.aio.AioRpcError as error:
                raise rpc.from_rpc(error, worker_id=change.worker_id) from error


@dataclass(frozen=True, slots=True)
class Converter:
    """Asks the rule after each plan and does what it says, one change at a time."""

    fleet: Fleet
    control: RoleControl
    rule: ConversionRule
    drain_s: float
    metrics: MetricSet
    clock: Clock

    async def consider(self, site: SiteId, wanted: Role | None) -> Change | None:
        """Take the direction of a plan; returns the change that was carried out, once its worker has drained."""
        change = self.rule.step(site, wanted, self.fleet.view(), self.clock.now_s())
        if change is None:
            return None
        _log.warning("worker %s becomes %s", change.worker_id, change.role)
        self.fleet.converting(change.worker_id, change.role)
        outcome = "failed"
        try:
            unfinished = await self.control.set_role(change, self.drain_s)
            outcome = "done"
            _log.info("worker %s is %s, with %d calls to finish", change.worker_id, change.role, unfinished)
        except PrfaasError as error:
            _log.warning("worker %s did not become %s: %s", change.worker_id, change.role, error)
            return None
        finally:
            self.metrics.inc(m.CONVERSIONS, role=change.role.value, outcome=outcome)
            if outcome != "done":  # else it stays out of use until it has registered in its new role
                self.fleet.converting(change.worker_id, None)
        return change
