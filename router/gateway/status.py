"""Endpoints about the service itself: health, metrics and the model list. Asks the fleet, changes nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from prfaas.clock import unix_time_s
from router.gateway.checks import check_model
from router.gateway.core import GatewayCore
from router.gateway.documents import Health, ModelList, ModelObject, answers


def status_routes(core: GatewayCore) -> APIRouter:
    """`/health`, `/metrics`, `/v1/models` and `/v1/models/{id}`."""
    router = APIRouter()
    started = int(unix_time_s())

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

    def model_object() -> dict[str, Any]:
        name = core.settings.served_model_name
        context = core.fleet.max_context_tokens(name)
        return {"id": name, "object": "model", "created": started, "owned_by": "prfaas", "max_model_len": context}

    @router.get("/v1/models", response_class=JSONResponse, responses=answers(ModelList))
    async def list_models() -> JSONResponse:
        return JSONResponse({"object": "list", "data": [model_object()]})

    @router.get("/v1/models/{model:path}", response_class=JSONResponse, responses=answers(ModelObject))
    async def retrieve_model(model: str) -> JSONResponse:
        check_model(core, model)
        return JSONResponse(model_object())

    return router
