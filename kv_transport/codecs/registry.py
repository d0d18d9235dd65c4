"""The codecs of this version, by name and by number, and the choice between them."""

from __future__ import annotations

from collections.abc import Sequence

from kv_transport.codecs.base import AsIs, WireCodec
from kv_transport.codecs.fp8 import Fp8
from kv_transport.codecs.lossless import Lossless
from prfaas.errors import ProtocolViolation

AS_IS = AsIs()
CODECS: tuple[WireCodec, ...] = (AS_IS, Fp8(), Lossless())
AUTO = "auto"
# Coding and decoding run at about 0.6 GB/s on one core; on a link faster than this as-is arrives sooner.
LOSSLESS_WINS_BELOW_BYTES_PER_S = 300e6


def codec_named(name: str) -> WireCodec:
    """Raises ProtocolViolation for a name this version does not know."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    raise ProtocolViolation(f"unknown wire codec {name!r}", frame="manifest", state="decoding")


def codec_coded(code: int) -> WireCodec:
    """Raises ProtocolViolation for a number this version does not know."""
    for codec in CODECS:
        if codec.code == code:
            return codec
    raise ProtocolViolation(f"unknown wire codec number {code}", frame="chunk", state="decoding")


def accepted_codecs(setting: str) -> tuple[str, ...]:
    """What a receiver with this `wire_codec` setting puts in its orders, preferred first. fp8 changes values, so it
    is accepted only where an operator has named it."""
    if setting == Fp8.name:
        return (Fp8.name, Lossless.name, AsIs.name)
    if setting == AsIs.name:
        return (AsIs.name,)
    return (Lossless.name, AsIs.name)


def negotiate(setting: str, accepted: Sequence[str], link_bytes_per_s: float) -> WireCodec:
    """The sender's choice for one transfer.

    A named codec is used when the receiver accepts it. `auto` codes losslessly while the link is the bottleneck:
    `link_bytes_per_s` is what the path to this receiver is known to carry, 0 when unknown.
    """
    if setting == AUTO:
        slow = 0 < link_bytes_per_s < LOSSLESS_WINS_BELOW_BYTES_PER_S
        setting = Lossless.name if slow else AsIs.name
    return codec_named(setting) if setting in accepted else AS_IS
