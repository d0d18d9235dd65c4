"""fp8 on the wire: e4m3 values with one float32 scale per channel, for token entries. States travel as they are.

The scale of a channel is its largest magnitude over the chunk's tokens, divided by 448, e4m3's largest value; rounding
is to nearest even, so an element's error is at most 1/16 of its magnitude, or 2**-10 of the channel's scale for the
smallest ones (Micikevicius et al., "FP8 formats for deep learning", arXiv:2209.05433). For each layer and tensor the
coded form is `scales float32[channels] | values uint8[tokens, channels]`, little-endian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kv_transport.api import GroupPlan
from kv_transport.codecs.base import Buffer
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import DType, KvRange

MAX_E4M3 = 448.0
_MIN_NORMAL = 2.0**-6
_SUBNORMAL_STEPS = 2.0**9

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def encode_e4m3(values: Floats) -> Bytes:
    """Round float32 to e4m3fn codes, to nearest even, saturating at 448. Values must be finite."""
    magnitude = np.abs(values)
    bits = magnitude.view(np.uint32)
    rounded = (bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    normal = np.minimum(rounded.astype(np.int32) - ((127 - 7) << 3), 0x7E)
    subnormal = np.rint(magnitude * _SUBNORMAL_STEPS).astype(np.int32)
    codes = np.where(magnitude < _MIN_NORMAL, subnormal, normal).astype(np.uint8)
    signs = np.left_shift(np.signbit(values).astype(np.uint8), 7, dtype=np.uint8)
    return np.bitwise_or(codes, signs)


def _decode_table() -> Floats:
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    magnitude[[0x7F, 0xFF]] = np.nan
    return np.where(codes & 0x80, -magnitude, magnitude).astype(np.float32)


E4M3 = _decode_table()


def to_float32(raw: Bytes, dtype: DType) -> Floats:
    """Little-endian elements of a 2- or 4-byte dtype as float32."""
    if dtype is DType.BF16:
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return raw.view("<f2" if dtype is DType.F16 else "<f4").astype(np.float32)


def from_float32(values: Floats, dtype: DType) -> bytes:
    """float32 as little-endian elements of a 2- or 4-byte dtype, rounded to nearest even. Values must be finite."""
    if dtype is DType.BF16:
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return values.astype("<f2" if dtype is DType.F16 else "<f4").tobytes()


@dataclass(frozen=True, slots=True)
class _Piece:
    """One tensor of one layer in a payload."""

    tokens: int
    channels: int
    dtype: DType

    @property
    def raw_bytes(self) -> int:
        return self.tokens * self.channels * self.dtype.num_bytes

    @property
    def coded_bytes(self) -> int:
        return self.channels * (4 + self.tokens)


def _pieces(plan: GroupPlan, part: KvRange) -> Iterator[_Piece]:
    for _ in range(part.layer_start, part.layer_stop):
        for tensor, dtype in zip(plan.group.tensors, plan.wire_dtypes, strict=True):
            yield _Piece(part.num_entries(plan.group), math.prod(tensor.shape), dtype)


class Fp8:
    """Halves bf16 entries. Loses precision: used only where an operator has asked for it by name."""

    name = "fp8"
    code = 1

    def encode(self, plan: GroupPlan, part: KvRange, payload: Sequence[Buffer]) -> Sequence[Buffer] | None:
        pieces = list(_pieces(plan, part))
        raw_bytes = sum(piece.raw_bytes for piece in pieces)
        smaller = sum(piece.coded_bytes for piece in pieces) < raw_bytes
        if plan.group.is_state or DType.F8 in plan.wire_dtypes or not smaller:
            return None
        joined = np.frombuffer(b"".join(payload) if len(payload) > 1 else payload[0], np.uint8)
        coded: list[Buffer] = []
        at = 0
        for piece in pieces:
            values = to_float32(joined[at : at + piece.raw_bytes], piece.dtype).reshape(piece.tokens, piece.channels)
            at += piece.raw_bytes
            largest = np.abs(values).max(axis=0)
            if not np.isfinite(largest).all():
                return None
            scales = np.where(largest > 0, largest / MAX_E4M3, 1.0).astype("<f4")
            tiny = scales == 0  # a channel of denormals
            scales[tiny] = np.finfo(np.float32).tiny
            coded.append(scales.tobytes())
            coded.append(encode_e4m3(np.clip(values / scales, -MAX_E4M3, MAX_E4M3)).tobytes())
        return coded

    def decode(self, plan: GroupPlan, part: KvRange, raw_bytes: int, coded: memoryview) -> memoryview:
        pieces = list(_pieces(plan, part))
        if len(coded) != sum(piece.coded_bytes for piece in pieces) or DType.F8 in plan.wire_dtypes:
            raise ProtocolViolation(f"{len(coded)} bytes are not {raw_bytes} in fp8", frame="chunk", state="decoding")
        source = np.frombuffer(coded, np.uint8)
        decoded = []
        at = 0
        for piece in pieces:
            scales = source[at : at + 4 * piece.channels].view("<f4")
            codes = source[at + 4 * piece.channels : at + piece.coded_bytes]
            at += piece.coded_bytes
            with np.errstate(over="ignore", invalid="ignore"):  # a peer may send any scale; checked below
                values = E4M3[codes].reshape(piece.tokens, piece.channels) * scales
            if not np.isfinite(values).all():
                raise ProtocolViolation("an fp8 chunk holds values that are not finite", frame="chunk", state="decoding")
            decoded.append(from_float32(values, piece.dtype))
        return memoryview(b"".join(decoded))
