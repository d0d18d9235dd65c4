"""Lossless on the wire: the byte of every element that holds sign and exponent is entropy-coded, the rest is not.

Mantissas are noise; exponents of a cache cluster, so their byte shrinks to about 0.4 and a bf16 chunk to about 0.7.
The coded form is `length u32 | zstd frame of the top bytes | the other byte planes, lowest first`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import zstandard

from kv_transport.api import GroupPlan
from kv_transport.codecs.base import Buffer
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import KvRange

_LENGTH = struct.Struct("<I")
LEVEL = 1
WORTH = 0.95  # a chunk that does not shrink to this share travels as it is


class Lossless:
    """Byte planes and zstd. Works on groups whose tensors have elements of one size, of 2 or 4 bytes."""

    name = "lossless"
    code = 2

    def encode(self, plan: GroupPlan, part: KvRange, payload: Sequence[Buffer]) -> Sequence[Buffer] | None:
        width = _width(plan)
        if width is None:
            return None
        joined = np.frombuffer(b"".join(payload) if len(payload) > 1 else payload[0], np.uint8).reshape(-1, width)
        top = zstandard.ZstdCompressor(level=LEVEL).compress(np.ascontiguousarray(joined[:, -1]).data)
        rest = [joined[:, plane].tobytes() for plane in range(width - 1)]
        if _LENGTH.size + len(top) + joined.size // width * (width - 1) > WORTH * joined.size:
            return None
        return [_LENGTH.pack(len(top)), top, *rest]

    def decode(self, plan: GroupPlan, part: KvRange, raw_bytes: int, coded: memoryview) -> memoryview:
        width = _width(plan)
        if width is None or raw_bytes % width or len(coded) < _LENGTH.size:
            raise self._violation("this group is never coded losslessly, or the chunk has no length")
        count = raw_bytes // width
        (length,) = _LENGTH.unpack_from(coded)
        if len(coded) != _LENGTH.size + length + count * (width - 1):
            raise self._violation(f"{len(coded)} bytes are not {raw_bytes} with {length} of them compressed")
        planes = np.empty((count, width), np.uint8)
        planes[:, -1] = self._top(coded[_LENGTH.size : _LENGTH.size + length], count)
        at = _LENGTH.size + length
        for plane in range(width - 1):
            planes[:, plane] = np.frombuffer(coded[at : at + count], np.uint8)
            at += count
        return planes.reshape(-1).data

    def _top(self, frame: memoryview, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        try:
            parameters = zstandard.get_frame_parameters(frame)
            if parameters.content_size != count or parameters.window_size > max(count, 1024):
                raise self._violation(f"a compressed plane of {parameters.content_size} bytes instead of {count}")
            top = zstandard.ZstdDecompressor().decompress(frame, max_output_size=count)
        except zstandard.ZstdError as error:
            raise self._violation(f"a damaged compressed plane: {error}") from error
        if len(top) != count:
            raise self._violation(f"{len(top)} bytes decompressed instead of {count}")
        return np.frombuffer(top, np.uint8)

    @staticmethod
    def _violation(message: str) -> ProtocolViolation:
        return ProtocolViolation(message, frame="chunk", state="decoding")


def _width(plan: GroupPlan) -> int | None:
    widths = {dtype.num_bytes for dtype in plan.wire_dtypes}
    width = widths.pop() if len(widths) == 1 else None
    return width if width in (2, 4) else None
