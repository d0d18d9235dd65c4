"""Reads the key-value header of a GGUF file, and nothing after it.

The header holds the tokenizer and the chat template; a router needs no tensor and so no tensor library. Layout: the
GGUF specification, versions 2 and 3, little endian. This module does not know what any key means.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from prfaas.errors import ModelLoadError

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "?", 10: "Q", 11: "q", 12: "d"}

GgufValue = str | int | float | bool | list["GgufValue"]


class _Cursor:
    """Reads forward through the mapped file; struct.error and IndexError mean that the file ends too early."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = len(MAGIC)

    def numbers(self, code: str, count: int = 1) -> tuple[int | float | bool, ...]:
        form = f"<{count}{code}"
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def count(self) -> int:
        return int(self.numbers("Q")[0])

    def text(self) -> str:
        size = self.count()
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise IndexError("string beyond the end of the file")
        return self._data[start : self._at].decode("utf-8", "replace")

    def value(self, kind: int) -> GgufValue:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = int(self.numbers("I")[0]), self.count()
            if inner in _SCALARS:
                return list(self.numbers(_SCALARS[inner], count))
            return [self.value(inner) for _ in range(count)]
        return self.numbers(_SCALARS[kind])[0]


def read_gguf_metadata(path: Path) -> dict[str, GgufValue]:
    """All key-value pairs of the header.

    Raises:
        ModelLoadError: the file is missing, is no GGUF of version 2 or 3, or is cut off inside the header.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, path)
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read the GGUF file {path}: {error}", path=str(path)) from error


def _read(data: mmap.mmap, path: Path) -> dict[str, GgufValue]:
    if data[: len(MAGIC)] != MAGIC:
        raise ModelLoadError(f"{path} is not a GGUF file: it does not start with 'GGUF'", path=str(path))
    cursor = _Cursor(data)
    try:
        version = int(cursor.numbers("I")[0])
        if version not in _VERSIONS:
            raise ModelLoadError(f"{path} is GGUF version {version}; versions 2 and 3 are understood", version=version)
        cursor.count()  # number of tensors
        pairs: dict[str, GgufValue] = {}
        for _ in range(cursor.count()):
            key = cursor.text()
            pairs[key] = cursor.value(int(cursor.numbers("I")[0]))
    except (struct.error, IndexError, KeyError, MemoryError, OverflowError) as error:
        raise ModelLoadError(f"the header of {path} is cut off or damaged", path=str(path)) from error
    return pairs
