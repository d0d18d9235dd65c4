"""Writes the header of a GGUF file: enough for everything that reads metadata. Values of each type that headers use."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any


def write_gguf_header(path: Path, pairs: dict[str, Any], *, version: int = 3, magic: bytes = b"GGUF") -> Path:
    """Integers become UINT32, floats FLOAT32; lists take the type of their first item, integers there INT32."""
    body = b"".join(_text(key) + _value(value) for key, value in pairs.items())
    path.write_bytes(magic + struct.pack("<IQQ", version, 0, len(pairs)) + body)
    return path


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5 if isinstance(value[0], int) else 6
        form = {5: "<i", 6: "<f"}.get(kind, "")
        items = b"".join(_text(item) if kind == 8 else struct.pack(form, item) for item in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    return struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
