"""The door every HTTP request passes, whatever it asks: a name, a bound on its body, a place, and one count at its end.

Plain ASGI, so that it costs microseconds and lets disconnects through. Knows paths only as "generates" or "does not".
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prfaas.clock import Clock
from prfaas.errors import PrfaasError
from prfaas.log import logger
from prfaas.metrics import REQUESTS, MetricSet
from router.gateway.arrivals import Arrivals, replayed
from router.gateway.errors import error_body_for
from router.gateway.gate import Gate
from router.gateway.keys import Keys
from router.gateway.problem import Problem, problem_of
from router.gateway.sse import dump
from router.gateway.visit import STATE_KEY, Visit, visit_from_headers

GENERATING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"})
# Places that need no key: probes, scrapes, and the page's own files, which hold nothing of the deployment.
OPEN = frozenset({"/health", "/metrics", "/", "/openapi.json"})
UNREAD = (408, 413)  # answers to a body of which the rest is not wanted
log = logger(__name__)


def is_open(path: str) -> bool:
    """Whether a path may be asked without a key."""
    return path in OPEN or path.startswith("/static/")


def is_administrative(path: str) -> bool:
    """Whether a path tells of the whole service and of everybody's requests."""
    return path.startswith("/live/")


class Entrance:
    """ASGI middleware around the whole application."""

    def __init__(
        self, app: ASGIApp, *, gate: Gate, keys: Keys | None, metrics: MetricSet, clock: Clock, arrivals: Arrivals
    ) -> None:
        self._app = app
        self._gate = gate
        self._keys = keys
        self._metrics = metrics
        self._clock = clock
        self._arrivals = arrivals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and is_open(scope["path"]):  # load balancers ask so; the server drops the body
            scope = {**scope, "method": "GET"}
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
            if scope["method"] == "POST":
                receive = replayed(await self._arrivals.body(headers, receive), receive)
            with self._gate.enter() if generating else nullcontext():
                await self._app(scope, receive, door.send)
        except PrfaasError as error:
            visit.fail(error)
            await door.refuse(problem_of(error), scope)
        except Exception:
            log.exception("request %s failed", visit.request_id)
            problem = Problem(500, "internal_error", "the router failed on this request; its log says why")
            visit.end(problem.status, problem.code)
            await door.refuse(problem, scope)
        finally:
            if generating:
                visit.charge()
                self._metrics.inc(REQUESTS, outcome=visit.outcome, reason=visit.reason)


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

    async def refuse(self, problem: Problem, scope: Scope) -> None:
        if self._started:
            return
        body: Any = error_body_for(scope)(problem, self._visit.request_id)
        headers = {"content-type": "application/json", **problem.headers}
        if problem.status in UNREAD:
            headers["connection"] = "close"
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": dump(body)})
