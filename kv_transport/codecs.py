"""Wire codecs: how a chunk's canonical payload is written on the wire. Knows no frames and no transfers."""

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


AS_IS = AsIs()
CODECS: tuple[WireCodec, ...] = (AS_IS,)


def codec_named(name: str) -> WireCodec:
    """Raises ProtocolViolation for a name this version does not know."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    raise ProtocolViolation(f"unknown wire codec {name!r}", frame="manifest", state="decoding")


def codec_coded(code: int) -> WireCodec:
    """Raises ProtocolViolation for a code this version does not know."""
    for codec in CODECS:
        if codec.code == code:
            return codec
    raise ProtocolViolation(f"unknown wire codec number {code}", frame="chunk", state="decoding")


def negotiate(wanted: str, decodable: Sequence[str]) -> WireCodec:
    """The sender's choice: what its settings want if the receiver can read it, else as it is."""
    return codec_named(wanted) if wanted in decodable else AS_IS
