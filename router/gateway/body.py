"""The base of every request body: strict types, and a parameter nobody knows is an error."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class Body(BaseModel):
    """No coercion ("1" is not 1), no silent extras."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, validate_by_alias=True, serialize_by_alias=True)
