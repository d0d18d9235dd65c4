"""One HTTP request's own facts, from its arrival to its end: who, when, and how it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Protocol
from uuid import uuid4

from starlette.requests import Request
from starlette.types import Scope

from prfaas.errors import CapacityError, DeadlineExceeded, PrfaasError, RequestCancelled, RequestError
from router.gateway.keys import Caller

STATE_KEY = "prfaas_visit"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACE_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class Metered(Protocol):
    """Something whose use can be read off at any time."""

    @property
    def used_tokens(self) -> int: ...

    @property
    def egress_bytes(self) -> int: ...


@dataclass(slots=True)
class Visit:
    """Mutable on purpose: the request's end is written here by whoever sees it, and counted once at the door."""

    request_id: str  # the caller's, or ours
    trace_parent: str  # W3C trace context, empty if none or malformed
    arrived_s: float
    outcome: str = "finished"  # finished, rejected, failed, cancelled
    reason: str = "ok"  # or an error code
    caller: Caller | None = None  # None where no key is required
    meters: list[Metered] = field(default_factory=list)  # what the request runs, for charging the caller

    @property
    def tenant(self) -> str:
        """The key's name; empty without keys."""
        return self.caller.entry.name if self.caller is not None else ""

    def charge(self) -> None:
        """Charge the caller for what was used, however the request ended."""
        if self.caller is not None:
            tokens = sum(meter.used_tokens for meter in self.meters)
            self.caller.charge(tokens=tokens, egress_bytes=sum(meter.egress_bytes for meter in self.meters))

    def fail(self, error: PrfaasError) -> None:
        """Note that the request ends with this error: by the client's doing, refused, or broken underway."""
        if isinstance(error, RequestCancelled):
            self.outcome = "cancelled"
        elif isinstance(error, RequestError | CapacityError) and not isinstance(error, DeadlineExceeded):
            self.outcome = "rejected"
        else:
            self.outcome = "failed"
        self.reason = error.code

    def end(self, status: int, code: str) -> None:
        """Note an end that is no error of ours, by HTTP status and code."""
        self.outcome = "failed" if status >= 500 else "rejected"
        self.reason = code


def visit_from_headers(headers: dict[bytes, bytes], arrived_s: float) -> Visit:
    """Honour `x-request-id` (printable ASCII, at most 128 characters) and `traceparent`; make what is missing or malformed."""
    given = headers.get(b"x-request-id", b"").decode("latin-1")
    trace = headers.get(b"traceparent", b"").decode("latin-1").strip()
    request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid4().hex}"
    return Visit(request_id, trace if _TRACE_PARENT.fullmatch(trace) else "", arrived_s)


def visit_of(request: Request) -> Visit:
    """The visit that the entrance attached to this request."""
    return visit_in(request.scope)


def visit_in(scope: Scope) -> Visit:
    """As `visit_of`, from a bare ASGI scope."""
    visit = scope["state"][STATE_KEY]
    assert isinstance(visit, Visit)
    return visit
