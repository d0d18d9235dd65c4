"""The base of every request body: strict types, text that is text, and a parameter nobody knows is an error."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

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
    """A route whose JSON holds no half of a surrogate pair: JSON can spell one, but no tokenizer or wire can carry it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def checked(request: Request) -> Response:
            return await handle(_TextRequest(request.scope, request.receive))

        return checked


class _TextRequest(Request):
    async def json(self) -> Any:
        document = await super().json()
        if b"\\ud" in (await self.body()).lower():
            try:
                json.dumps(document, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest("the body has half of a surrogate pair, which is no text; send both halves") from error
        return document
