"""The port of wire codecs, and the codec that does nothing. Knows no frames and no transfers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kv_transport.api import GroupPlan
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import KvRange

Buffer = bytes | memoryview


class WireCodec(Protocol):
    """One way to write payloads. `name` is negotiated, `code` stands in every chunk header."""

    @property
    def name(self) -> str: ...

    @property
    def code(self) -> int: ...

    def encode(self, plan: GroupPlan, part: KvRange, payload: Sequence[Buffer]) -> Sequence[Buffer] | None:
        """The coded form of a payload given in pieces. None when writing it as it is, is better."""
        ...

    def decode(self, plan: GroupPlan, part: KvRange, raw_bytes: int, coded: memoryview) -> memoryview:
        """The canonical payload, of exactly `raw_bytes`. Raises ProtocolViolation when `coded` is not of this codec;
        never allocates more than a small multiple of `raw_bytes`."""
        ...


class AsIs:
    """The canonical payload itself, without a copy."""

    name = "as_is"
    code = 0

    def encode(self, plan: GroupPlan, part: KvRange, payload: Sequence[Buffer]) -> Sequence[Buffer] | None:
        return payload

    def decode(self, plan: GroupPlan, part: KvRange, raw_bytes: int, coded: memoryview) -> memoryview:
        if len(coded) != raw_bytes:
            raise ProtocolViolation(f"{len(coded)} bytes as they are instead of {raw_bytes}", frame="chunk", state="decoding")
        return coded
