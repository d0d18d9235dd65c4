"""The base of every request body: strict types, text that is text, and a parameter nobody knows is an error."""

from __future__ import annotations

import json
from typing import Annotated, Any, cast

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, WithJsonSchema
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from prfaas.errors import InvalidRequest

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


def _is_off(value: bool) -> bool:
    if value:
        raise ValueError("only false is supported")
    return value


# What cannot be switched on here. A literal would take 0.0 for false.
Off = Annotated[bool, AfterValidator(_is_off), Field(json_schema_extra={"const": False})]
# A list that SDKs send back as they got it; nothing ever puts anything into it.
Empty = Annotated[list[object], Field(max_length=0), WithJsonSchema({"type": "array", "const": []})]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Body(BaseModel):
    """No coercion ("1" is not 1), no silent extras."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_by_alias=True, serialize_by_alias=True)


class BodyRoute(APIRoute):
    """A route whose endpoint takes a body, and perhaps the request, and returns a response.

    The framework describes it but does not run it: looking for cookies, forms and dependencies that no endpoint here has takes
    longer than validating the body. Text in the body is text: JSON can spell half of a surrogate pair, but no tokenizer or wire
    can carry it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        field = self.body_field
        self._model = cast("type[Body] | None", None if field is None else field.field_info.annotation)
        self._names = (field.name if field is not None else "", self.dependant.request_param_name)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._model is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        document = await _document(request)
        try:
            body = self._model.model_validate(document)
        except ValidationError as error:
            raise RequestValidationError(error.errors(include_url=False), body=document) from error
        body_name, request_name = self._names
        given = {body_name: body} if request_name is None else {body_name: body, request_name: request}
        response: Response = await self.endpoint(**given)
        await response(scope, receive, send)


async def _document(request: Request) -> Any:
    """The body's JSON; bytes as they are where they are said to be something else, which no model takes."""
    raw = await request.body()
    if not raw or not _is_json(request.headers.get("content-type", "")):
        return raw
    try:
        document = json.loads(raw)
    except json.JSONDecodeError as error:
        found = {"type": "json_invalid", "loc": ("body", error.pos), "msg": "JSON decode error", "ctx": {"error": error.msg}}
        raise RequestValidationError([found], body=error.doc) from error
    except (ValueError, RecursionError) as error:
        raise HTTPException(400) from error
    if b"\\ud" in raw.lower():
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest("the body has half of a surrogate pair, which is no text; send both halves") from error
    return document


def _is_json(content_type: str) -> bool:
    kind, _, subtype = content_type.partition(";")[0].strip().lower().partition("/")
    return kind == "application" and (subtype == "json" or subtype.endswith("+json"))
