"""Assembles the HTTP application from its ports. The only place that knows every endpoint."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from prfaas.clock import Clock
from prfaas.config import RouterSettings
from prfaas.errors import ConfigError, PrfaasError
from prfaas.metrics import MetricSet
from prfaas.text import TextModel
from router.api import FleetReader, Pipeline
from router.gateway.anthropic_messages import anthropic_routes
from router.gateway.arrivals import Arrivals
from router.gateway.core import GatewayCore
from router.gateway.encoder import Encoder
from router.gateway.entrance import Entrance
from router.gateway.errors import error_body_for
from router.gateway.gate import Gate
from router.gateway.keys import Keys
from router.gateway.live.activity import Activity
from router.gateway.live.page import live_routes
from router.gateway.models import model_routes
from router.gateway.openai_chat import chat_routes
from router.gateway.openai_completions import completion_routes
from router.gateway.problem import Problem, problem_of, problem_of_validation
from router.gateway.responses import responses_routes
from router.gateway.status import status_routes
from router.gateway.tokens import token_routes
from router.gateway.visit import visit_of

# Parts of OpenAI's interface that clients may try, for which a model that generates text has no answer.
UNSUPPORTED = (
    "/v1/assistants", "/v1/audio/", "/v1/batches", "/v1/embeddings", "/v1/files", "/v1/fine_tuning/", "/v1/images/",
    "/v1/moderations", "/v1/realtime", "/v1/threads", "/v1/vector_stores",
)  # fmt: skip


def create_app(
    *,
    pipeline: Pipeline,
    fleet: FleetReader,
    text: TextModel,
    settings: RouterSettings,
    metrics: MetricSet,
    clock: Clock,
    gate: Gate | None = None,
) -> FastAPI:
    """The whole HTTP surface over these ports.

    Pass a `gate` to drain: `gate.drain()` refuses new requests with 503 while those inside go on, and makes `/health`
    answer 503, so that a load balancer turns away before the process does.
    """
    door = gate if gate is not None else Gate(settings.limits.max_in_flight, metrics)
    encoder = Encoder()
    core = GatewayCore(pipeline, fleet, text, settings, metrics, clock, encoder, door, Activity())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        encoder.close()

    app = FastAPI(title="prfaas", summary="OpenAI-compatible inference over disaggregated prefill", lifespan=lifespan)
    arrivals = Arrivals(limit_bytes=settings.limits.max_body_bytes)
    app.add_middleware(Entrance, gate=door, keys=_keys(settings, clock), metrics=metrics, clock=clock, arrivals=arrivals)
    _add_error_handlers(app)
    app.include_router(chat_routes(core))
    app.include_router(completion_routes(core))
    app.include_router(responses_routes(core))
    app.include_router(anthropic_routes(core))
    app.include_router(token_routes(core))
    app.include_router(model_routes(core))
    app.include_router(status_routes(core))
    app.include_router(live_routes(core))
    return app


def _keys(settings: RouterSettings, clock: Clock) -> Keys | None:
    """API keys, or None where none are needed. Raises ConfigError when they are needed and no file is named."""
    wanted = settings.api_keys_file is not None or not _is_loopback(settings.host)
    if not (wanted if settings.require_auth is None else settings.require_auth):
        return None
    if settings.api_keys_file is None:
        raise ConfigError(
            f"the router is to serve {settings.host}, which others can reach: name an api_keys_file, "
            "or set require_auth: false if something in front of it checks who calls"
        )
    return Keys(settings.api_keys_file, clock)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _why_unreadable(error: BaseException | None) -> str:
    """What a JSON reader stumbled over, for the one who sent it."""
    if isinstance(error, RecursionError):
        return "the body's JSON is nested too deeply; send it flatter"
    if isinstance(error, UnicodeDecodeError):
        return "the body is not UTF-8; send JSON in UTF-8"
    if isinstance(error, ValueError):
        return "the body's JSON holds a number that is too long to read"
    return "the body could not be read; send JSON in UTF-8"


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in the dialect of its path."""

    def respond(request: Request, problem: Problem) -> Response:
        visit = visit_of(request)
        body = error_body_for(request.scope)(problem, visit.request_id)
        return JSONResponse(body, status_code=problem.status, headers=problem.headers)

    @app.exception_handler(PrfaasError)
    async def ours(request: Request, error: PrfaasError) -> Response:
        visit_of(request).fail(error)
        return respond(request, problem_of(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        problem = problem_of_validation(error.errors(), error.body)
        visit_of(request).end(problem.status, problem.code)
        return respond(request, problem)

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> Response:
        if isinstance(error.__cause__, PrfaasError):  # raised while the framework read the body
            return await ours(request, error.__cause__)
        path = request.url.path
        where = f"{request.method} {path}"
        code, message = {
            400: ("invalid_body", _why_unreadable(error.__cause__)),
            404: ("unknown_url", f"there is nothing at {where}"),
            405: ("method_not_allowed", f"{where} is not allowed"),
        }.get(error.status_code, ("http_error", str(error.detail)))
        if error.status_code == 404 and path.startswith(UNSUPPORTED):
            code, message = "unsupported_endpoint", f"{path} is not supported: this service generates text"
        visit_of(request).end(error.status_code, code)
        return respond(request, Problem(error.status_code, code, message))
