"""Serves the live page: its three files, its state, and a stream of states. Anyone who may ask for models may watch."""

from __future__ import annotations

import asyncio
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from prfaas.errors import QueueFull
from router.gateway.core import GatewayCore
from router.gateway.documents import EVENT_SCHEMA, LiveState, Responses, answers
from router.gateway.live.state import live_state
from router.gateway.openai_wire import late_error
from router.gateway.reply import EventSink, StreamReply
from router.gateway.sse import data
from router.gateway.visit import visit_of

EVERY_S = 1.0
MAX_WATCHERS = 64
FILES = {"live.css": "text/css", "live.js": "text/javascript"}
# Nothing from elsewhere, nothing inline, in no frame: text that a model or a client chose can do no harm.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def live_routes(core: GatewayCore) -> APIRouter:
    """`/`, `/static/{name}`, `/live/state` and `/live/events`."""
    router = APIRouter()
    folder = resources.files("router.gateway.live")
    html = (folder / "index.html").read_bytes()
    static = {name: (folder / name).read_bytes() for name in FILES}
    feed = _Feed(core)
    described = {"description": "A state every second", "content": {"text/event-stream": {"schema": EVENT_SCHEMA}}}
    event_answers: Responses = {**answers(LiveState), 200: described}

    @router.get("/", response_class=Response, include_in_schema=False)
    async def page() -> Response:
        return Response(html, media_type="text/html; charset=utf-8", headers=HEADERS)

    @router.get("/static/live.css", response_class=Response, include_in_schema=False)
    async def style() -> Response:
        return Response(static["live.css"], media_type=FILES["live.css"], headers=HEADERS)

    @router.get("/static/live.js", response_class=Response, include_in_schema=False)
    async def script() -> Response:
        return Response(static["live.js"], media_type=FILES["live.js"], headers=HEADERS)

    @router.get("/live/state", response_class=JSONResponse, responses=answers(LiveState))
    async def state() -> JSONResponse:
        return JSONResponse(feed.state())

    @router.get("/live/events", response_class=Response, responses=event_answers)
    async def events(request: Request) -> Response:
        return StreamReply(
            feed.watch, keepalive_s=core.settings.limits.sse_keepalive_s, limit_s=None, late=late_error(visit_of(request))
        )

    return router


class _Feed:
    """States for everybody who watches, a bounded number of them."""

    def __init__(self, core: GatewayCore) -> None:
        self._core = core
        self._watchers = 0

    def state(self) -> dict[str, Any]:
        core = self._core
        return live_state(
            core.fleet,
            core.activity,
            model=core.settings.served_model_name,
            now_s=core.clock.now_s(),
            in_flight=core.gate.inside,
            draining=core.gate.draining,
        )

    async def watch(self, sink: EventSink) -> None:
        """Send a state every second until the client goes or the router drains. Raises QueueFull for one too many."""
        if self._watchers >= MAX_WATCHERS:
            raise QueueFull(f"{self._watchers} pages watch already", depth=self._watchers, limit=MAX_WATCHERS)
        self._watchers += 1
        try:
            while not self._core.gate.draining:
                await sink.send(data(self.state()))
                await asyncio.sleep(EVERY_S)
        finally:
            self._watchers -= 1
