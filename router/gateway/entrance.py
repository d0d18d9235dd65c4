"""The door every HTTP request passes, whatever it asks: a name, a place, a bound on its body, and one count at its end.

Plain ASGI, so that it costs microseconds and lets disconnects through. Knows paths only as "generates" or "does not".
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prfaas.clock import Clock
from prfaas.errors import PrfaasError, RequestError
from prfaas.log import logger
from prfaas.metrics import REQUESTS, MetricSet
from router.gateway.errors import error_body_for
from router.gateway.gate import Gate
from router.gateway.keys import Keys
from router.gateway.problem import Problem, problem_of
from router.gateway.sse import dump
from router.gateway.visit import STATE_KEY, Visit, visit_from_headers

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
# Places that need no key: probes, scrapes, and the page's own files, which hold nothing of the deployment.
OPEN = frozenset({"/health", "/metrics", "/", "/openapi.json"})
log = logger(__name__)


def is_open(path: str) -> bool:
    """Whether a path may be asked without a key."""
    return path in OPEN or path.startswith("/static/")


def is_administrative(path: str) -> bool:
    """Whether a path tells of the whole service and of everybody's requests."""
    return path.startswith("/live/")


class BodyTooLarge(RequestError):
    """The body passes the limit; detail: limit_bytes."""

    code = "body_too_large"
    http_status = 413


class Entrance:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, gate: Gate, keys: Keys | None, metrics: MetricSet, clock: Clock, max_body_bytes: int
    ) -> None:
        self._app = app
        self._gate = gate
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        visit = visit_from_headers(headers, self._clock.now_s())
        scope.setdefault("state", {})[STATE_KEY] = visit
        generating = scope["method"] == "POST" and scope["path"] in GENERATING
        door = _Door(send, visit)
        try:
            if self._keys is not None and not is_open(scope["path"]):
                visit.caller = self._keys.caller(headers)
                if is_administrative(scope["path"]):
                    visit.caller.check_admin()
                if generating:
                    visit.caller.admit()
            with self._gate.enter() if generating else nullcontext():
                await self._app(scope, _Bounded(receive, headers, self._max_body_bytes).receive, door.send)
        except PrfaasError as error:
            visit.fail(error)
            await door.refuse(problem_of(error), scope["path"])
        except Exception:
            log.exception("request %s failed", visit.request_id)
            problem = Problem(500, "internal_error", "the router failed on this request; its log says why")
            visit.end(problem.status, problem.code)
            await door.refuse(problem, scope["path"])
        finally:
            if generating:
                visit.charge()
                self._metrics.inc(REQUESTS, outcome=visit.outcome, reason=visit.reason)


class _Bounded:
    """Counts body bytes as they are received."""

    def __init__(self, receive: Receive, headers: Mapping[bytes, bytes], limit_bytes: int) -> None:
        self._receive = receive
        self._limit_bytes = limit_bytes
        self._seen_bytes = 0
        declared = headers.get(b"content-length", b"")
        self._declared_bytes = int(declared) if declared.isdigit() else 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen_bytes += len(message.get("body", b""))
            if max(self._seen_bytes, self._declared_bytes) > self._limit_bytes:
                raise BodyTooLarge(
                    f"the request body is larger than the limit of {self._limit_bytes} bytes; send less at once",
                    limit_bytes=self._limit_bytes,
                )
        return message


class _Door:
    """Adds the request id to whatever goes out, and answers when nobody inside did."""

    def __init__(self, send: Send, visit: Visit) -> None:
        self._send = send
        self._visit = visit
        self._started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            name = self._visit.request_id.encode("latin-1")
            # OpenAI's and Anthropic's names for the same header.
            message["headers"] = [*message["headers"], (b"x-request-id", name), (b"request-id", name)]
        await self._send(message)

    async def refuse(self, problem: Problem, path: str) -> None:
        if self._started:
            return
        body: Any = error_body_for(path)(problem, self._visit.request_id)
        headers = {"content-type": "application/json", **problem.headers}
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": dump(body)})
