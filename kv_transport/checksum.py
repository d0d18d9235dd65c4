"""CRC32C over any contiguous buffer, by the processor's instruction where it has one. About 0.04 s per GB."""

from __future__ import annotations

import google_crc32c
import numpy as np


def crc32c(data: bytes | memoryview, start: int = 0) -> int:
    """The checksum of `data`, continuing from `start`, the checksum of what came before it.

    The library takes read-only exporters only; a numpy view lends it any buffer without a copy.
    """
    exporter = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
    return int(google_crc32c.extend(start, exporter))
