"""A Hugging Face model directory: config.json, (sharded) safetensors, tokenizer files.

Every tensor is its own copy-on-write mapping of the file: its pages are shared between processes and leave memory
as soon as the tensor is dropped, so a tensor that is converted or fused costs no second copy. Format of safetensors:
8 bytes little-endian header length, a JSON header with dtype, shape and data offsets, then the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
_MAX_HEADER_BYTES = 256 * 1024**2
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class _Entry:
    """Where one tensor lies: `offset` and `num_bytes` in the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class HfDirectory:
    """Implements `Checkpoint` for a directory. Raises ModelLoadError for a missing, truncated or malformed file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._config = read_json(directory / "config.json")
        self._headers: list[tuple[Path, bytes]] = []
        self._entries: dict[str, _Entry] = {}
        for path in self._weight_files():
            self._read_header(path)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence ids of config.json (and its text_config) and of generation_config.json, without repeats."""
        reader = ConfigReader(self._config)
        ids = list(reader.integers("eos_token_id", default=()))
        ids += reader.section("text_config", required=False).integers("eos_token_id", default=())
        generation = self._directory / "generation_config.json"
        if generation.is_file():
            ids += ConfigReader(read_json(generation), "generation_config").integers("eos_token_id", default=())
        return tuple(dict.fromkeys(ids))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self._entries.items()}

    def tensor(self, name: str) -> torch.Tensor:
        entry = self._entries.get(name)
        if entry is None:
            raise ModelLoadError(f"{self._directory} has no tensor {name}", tensor=name)
        if entry.num_bytes == 0:
            return torch.empty(entry.shape, dtype=entry.dtype)
        mapped = np.memmap(entry.path, dtype=np.uint8, mode="c", offset=entry.offset, shape=(entry.num_bytes,))
        return torch.from_numpy(mapped).view(entry.dtype).reshape(entry.shape)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The mapped tensor itself: nothing has to be expanded."""
        yield self.tensor(name)

    def weights_identity(self) -> str:
        digest = hashlib.sha256()
        for path, header in self._headers:
            digest.update(header)
            digest.update(sample_file(path, 8 + len(header)))
        return digest.hexdigest()

    def tokenizer_identity(self) -> str:
        digest = hashlib.sha256()
        for name in _TOKENIZER_FILES:
            path = self._directory / name
            if path.is_file():
                digest.update(name.encode())
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def _weight_files(self) -> list[Path]:
        index = self._directory / "model.safetensors.index.json"
        if index.is_file():
            weight_map = ConfigReader(read_json(index), index.name).section("weight_map").raw
            paths = [self._directory / name for name in sorted({str(v) for v in weight_map.values()})]
        else:
            paths = sorted(self._directory.glob("*.safetensors"))
        if not paths:
            raise ModelLoadError(f"{self._directory} holds no safetensors weights")
        for path in paths:
            if not path.is_file():
                raise ModelLoadError(f"{self._directory} lacks the shard {path.name}", shard=path.name)
        return paths

    def _read_header(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length) if 0 < length <= min(_MAX_HEADER_BYTES, size) else b""
        try:
            document = json.loads(header)
            document.pop("__metadata__", None)
            for name, item in document.items():
                start, stop = item["data_offsets"]
                entry = _Entry(path, _DTYPES[item["dtype"]], tuple(item["shape"]), 8 + length + start, stop - start)
                self._check(name, entry, size)
                self._entries[name] = entry
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelLoadError(f"{path} is not a readable safetensors file: {error!r}") from error
        self._headers.append((path, header))

    @staticmethod
    def _check(name: str, entry: _Entry, file_bytes: int) -> None:
        wanted = entry.dtype.itemsize
        for extent in entry.shape:
            wanted *= extent
        if entry.num_bytes != wanted or entry.offset + entry.num_bytes > file_bytes:
            raise ModelLoadError(
                f"{entry.path} is truncated or malformed at tensor {name}",
                tensor=name,
                wanted_bytes=wanted,
                file_bytes=file_bytes,
            )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON mapping. Raises ModelLoadError when it is missing, unreadable or not a mapping."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from error
    if not isinstance(document, dict):
        raise ModelLoadError(f"{path} must hold a mapping, not a {type(document).__name__}")
    return document


def sample_file(path: Path, data_start: int) -> bytes:
    """SHA-256 of the file's size and of evenly spaced windows of its data: reading 98 GB to name it would cost minutes."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    span = max(0, size - data_start - _SAMPLE_BYTES)
    with path.open("rb") as file:
        for index in range(_NUM_SAMPLES):
            file.seek(data_start + span * index // (_NUM_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.digest()
