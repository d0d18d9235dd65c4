"""How each dialect spells a problem: the OpenAI and the Anthropic error bodies. Knows no exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.types import Scope

from router.gateway.problem import Problem

ErrorBody = Callable[[Problem, str], dict[str, Any]]

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    409: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "request_cancelled",
}
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def openai_error(problem: Problem, request_id: str) -> dict[str, Any]:
    """The body of an OpenAI error; the request id travels in a header there."""
    kind = _OPENAI_TYPES.get(problem.status, "server_error")
    return {"error": {"message": problem.message, "type": kind, "param": problem.param, "code": problem.code}}


def anthropic_error(problem: Problem, request_id: str) -> dict[str, Any]:
    """The body of an Anthropic error."""
    kind = _ANTHROPIC_TYPES.get(problem.status, "api_error")
    message = "Extra inputs are not permitted" if problem.code == "unknown_parameter" else problem.message
    message = message if problem.param is None else f"{problem.param}: {message}"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}


def error_body_for(scope: Scope) -> ErrorBody:
    """The dialect in which a request speaks: its path says it, or, where both have the path, a header of Anthropic's."""
    path: str = scope["path"]
    theirs = path.startswith("/v1/messages")
    if path.startswith("/v1/models"):
        theirs = any(name == b"anthropic-version" for name, _ in scope["headers"])
    return anthropic_error if theirs else openai_error
