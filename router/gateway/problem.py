"""What went wrong with an HTTP request, free of dialect: status, kind, message, the field to change, when to retry.

The one place where the error tree and the framework's own errors become HTTP facts. How a dialect spells them is
`errors.py`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prfaas.errors import CapacityError, PrfaasError, RequestError

DEFAULT_RETRY_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Problem:
    """`code` is machine-readable; `param` is the field at fault, dotted; `retry_after_s` is None where retrying is useless."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, rounded up, where it applies."""
        if self.retry_after_s is None:
            return {}
        return {"retry-after": str(max(1, math.ceil(self.retry_after_s)))}


def problem_of(error: PrfaasError) -> Problem:
    """Translate an error of ours. Messages of client and capacity errors are shown; the rest is our affair, and said so."""
    retry = None
    if isinstance(error, CapacityError) or error.http_status in (429, 503):
        retry = error.retry_after_s if error.retry_after_s is not None else DEFAULT_RETRY_AFTER_S
    field = error.detail.get("param")
    param = field if isinstance(field, str) else None
    shown = isinstance(error, RequestError | CapacityError) or error.http_status < 500
    message = error.message if shown else f"the request failed inside the service ({error.code}): {error.message}"
    return Problem(error.http_status, error.code, message, param, retry)


def problem_of_validation(errors: Sequence[Mapping[str, Any]], body: Any) -> Problem:
    """Translate what pydantic found wrong with `body`; the first field at fault is reported, as the dialects do."""
    first = errors[0]
    if first["type"] == "json_invalid":
        reason = first.get("ctx", {}).get("error", first["msg"])
        return Problem(400, "invalid_json", f"the body is not valid JSON: {reason}")
    # Of the alternatives a field allows, the caller meant the one in which the fault lies deepest.
    top = _field(first, body).partition(".")[0]
    deepest = max(
        (error for error in errors if _field(error, body).partition(".")[0] == top),
        key=lambda error: _field(error, body).count("."),
    )
    kind, param = str(deepest["type"]), _field(deepest, body)
    if not param:
        return Problem(
            400, "invalid_request", "the body must be a JSON object, sent with the header 'content-type: application/json'"
        )
    if kind == "extra_forbidden":
        return Problem(400, "unknown_parameter", f"Unrecognized request argument supplied: {param}", param)
    if kind == "missing":
        return Problem(400, "missing_required_parameter", f"Missing required parameter: '{param}'", param)
    # A field that may be of several types has one finding for each of them.
    wanted = dict.fromkeys(_sentence(error) for error in errors if _field(error, body) == param)
    return Problem(400, "invalid_value", f"Invalid value for '{param}': {', or '.join(wanted)}", param)


def _sentence(error: Mapping[str, Any]) -> str:
    message = str(error["msg"])
    return message[:1].lower() + message[1:]


def _field(error: Mapping[str, Any], body: Any) -> str:
    """The field's dotted path in the caller's document. Pydantic's own has union branches in between, which are left out
    by walking the document along."""
    location, missing = error["loc"], error["type"] == "missing"
    path: list[str] = []
    node = body
    for at, part in enumerate(location):
        is_last = at == len(location) - 1
        if isinstance(node, dict) and isinstance(part, str) and (part in node or (missing and is_last)):
            path.append(part)
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            path.append(str(part))
            node = node[part]
    return ".".join(path)
