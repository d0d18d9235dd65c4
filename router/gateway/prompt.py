"""From a checked body to a GenerationRequest: one place that gives requests their identity, tenant, priority and deadline."""

from __future__ import annotations

from uuid import uuid4

from prfaas.types import GenerationRequest, RequestId, SamplingParams
from router.gateway.core import GatewayCore
from router.gateway.visit import Visit


def new_id(prefix: str) -> str:
    """A fresh id such as `chatcmpl-…`. Callers may repeat an x-request-id; workers need ids that never repeat."""
    return f"{prefix}-{uuid4().hex}"


def generation_request(
    core: GatewayCore,
    visit: Visit,
    tokens: tuple[int, ...],
    sampling: SamplingParams,
    *,
    request_id: str,
    tenant: str = "",
    cache_salt: str = "",
    priority: int = 0,
) -> GenerationRequest:
    """The request as the pipeline takes it. The deadline counts from the request's arrival; a key's name and priority go
    before what the body says of itself."""
    caller = visit.caller
    if caller is not None:
        caller.check_model(core.settings.served_model_name)
        priority += caller.entry.priority
    spent_s = core.clock.now_s() - visit.arrived_s
    return GenerationRequest(
        request_id=RequestId(request_id),
        model=core.settings.served_model_name,
        tokens=tokens,
        sampling=sampling,
        priority=priority,
        tenant=visit.tenant or tenant,
        cache_salt=cache_salt,
        deadline_s=max(0.001, core.settings.limits.request_timeout_s - spent_s),
        trace_parent=visit.trace_parent,
    )
