"""Endpoints about the service itself: health and metrics. Asks the fleet, changes nothing."""

from __future__ import annotations

from collections import Counter

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from router.gateway.core import GatewayCore
from router.gateway.documents import Health


def status_routes(core: GatewayCore) -> APIRouter:
    """`/health` and `/metrics`."""
    router = APIRouter()

    @router.get("/health", response_class=JSONResponse, responses={200: {"model": Health}, 503: {"model": Health}})
    async def health() -> JSONResponse:
        """200 while requests can be served, also with reduced capacity; 503 without a decode worker or while draining."""
        status = core.fleet.status()
        state = "draining" if core.gate.draining else "ok" if status.ready else "starting"
        workers = Counter(f"{m.info.role}:{'healthy' if m.healthy else 'unhealthy'}" for m in status.members)
        body = {
            "status": state,
            "reduced": status.reduced,
            "model": core.settings.served_model_name,
            "workers": dict(workers),
            "in_flight": core.gate.inside,
        }
        return JSONResponse(body, status_code=200 if state == "ok" else 503)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(core.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router
