"""GET /v1/models and /v1/models/{id}, in the dialect of who asks: Anthropic's clients send their version in a header."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse

from prfaas.clock import unix_time_s
from router.gateway.checks import check_model
from router.gateway.core import GatewayCore
from router.gateway.documents import (
    AnthropicError,
    AnthropicModel,
    AnthropicModelList,
    ModelList,
    ModelObject,
    OpenAIError,
    answers,
)


def model_routes(core: GatewayCore) -> APIRouter:
    """The endpoints. There is one model, as old as this process."""
    router = APIRouter()
    started = datetime.fromtimestamp(int(unix_time_s()), UTC)
    name = core.settings.served_model_name
    error = OpenAIError | AnthropicError

    def model_object(request: Request) -> dict[str, Any]:
        if speaks_anthropic(request):
            created = started.isoformat().replace("+00:00", "Z")
            return {"type": "model", "id": name, "display_name": name, "created_at": created}
        context = core.fleet.max_context_tokens(name)
        created_s = int(started.timestamp())
        return {"id": name, "object": "model", "created": created_s, "owned_by": "prfaas", "max_model_len": context}

    @router.get("/v1/models", response_class=JSONResponse, responses=answers(ModelList | AnthropicModelList, error=error))
    async def list_models(request: Request) -> JSONResponse:
        data = [model_object(request)]
        if speaks_anthropic(request):
            return JSONResponse({"data": data, "has_more": False, "first_id": name, "last_id": name})
        return JSONResponse({"object": "list", "data": data})

    @router.get(
        "/v1/models/{model:path}", response_class=JSONResponse, responses=answers(ModelObject | AnthropicModel, error=error)
    )
    async def retrieve_model(model: str, request: Request) -> JSONResponse:
        check_model(core, model)
        return JSONResponse(model_object(request))

    return router


def speaks_anthropic(request: Request) -> bool:
    """Whether a client of Anthropic's asks."""
    return "anthropic-version" in request.headers
