"""A GGUF file seen as a Hugging Face checkpoint: metadata become a configuration, quantised tensors are expanded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize
from numpy.typing import NDArray

from prfaas.errors import ModelLoadError
from prfaas.model.family import GgufDialect
from prfaas.model.hf_directory import sample_file

_BLOCK_PREFIX = "blk."
_PIECE_VALUES = 1 << 18  # values that are expanded at a time; each takes 4 bytes, and its expansion a few times as much
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})  # precomputed by the converter, follows from the metadata


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where one tensor lies and how: `offset` in bytes, `data_shape` and `dtype` of its data as numpy sees it."""

    kind: GGMLQuantizationType
    offset: int
    shape: tuple[int, ...]
    data_shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.data_shape[1:]) * self.dtype.itemsize


class GgufFile:
    """Implements `Checkpoint`. `find_dialect` maps general.architecture to the family's dialect.

    The `gguf` package's reader keeps a kilobyte for every entry of the vocabulary, so it is let go before any weight is
    read; weights are read from the file and not through a mapping, whose pages would stay beside the expanded values.

    Raises ModelLoadError for an unreadable file, an unknown architecture or a tensor without a known name.
    """

    def __init__(self, path: Path, find_dialect: Callable[[str], GgufDialect]) -> None:
        self._path = path
        try:
            reader = GGUFReader(str(path))
            metadata: dict[str, Any] = {key: field.contents() for key, field in reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelLoadError(f"{path} is not a readable GGUF file: {error}") from error
        self._dialect = find_dialect(str(metadata.get("general.architecture")))
        self._data_offset = int(reader.data_offset)
        self._tensors = {self._hf_name(t.name): _stored(t) for t in reader.tensors if t.name not in _NOT_WEIGHTS}
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ModelLoadError(f"{path} has no token embedding")
        self._config = {
            **self._dialect.config(metadata),
            "vocab_size": embedding.shape[0],
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }
        ends = (metadata.get(f"tokenizer.ggml.{key}") for key in ("eos_token_id", "eot_token_id", "eom_token_id"))
        self._eos_token_ids = tuple(dict.fromkeys(int(value) for value in ends if value is not None))
        self._tokenizer_identity = _identity_of_tokenizer(metadata)

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """GGUF's end-of-sequence, end-of-turn and end-of-message ids, as far as they are given."""
        return self._eos_token_ids

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: stored.shape for name, stored in self._tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor expanded to float32 (quantised types) or as stored (float types)."""
        return torch.cat(list(self.pieces(name)))

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """Slices of at most about 260,000 values, expanded as `tensor` does."""
        if name not in self._tensors:
            raise ModelLoadError(f"{self._path} has no tensor {name}", tensor=name)
        stored = self._tensors[name]
        unit = self._dialect.row_unit(self._config) if len(stored.shape) > 1 else stored.shape[0]
        step = max(1, _PIECE_VALUES // (math.prod(stored.shape[1:]) * unit)) * unit
        with self._path.open("rb") as file:
            if len(stored.shape) == 1:
                yield self._expand(name, stored, self._read(file, stored, 0, stored.data_shape[0]), stored.shape)
                return
            for start in range(0, stored.shape[0], step):
                data = self._read(file, stored, start, min(step, stored.shape[0] - start))
                yield self._expand(name, stored, data, (len(data), *stored.shape[1:]))

    @staticmethod
    def _read(file: BinaryIO, stored: _Stored, start: int, count: int) -> NDArray[Any]:
        file.seek(stored.offset + start * stored.row_bytes)
        flat = np.fromfile(file, stored.dtype, count * math.prod(stored.data_shape[1:]))
        return flat.reshape(count, *stored.data_shape[1:])

    def _expand(self, name: str, stored: _Stored, data: NDArray[Any], shape: tuple[int, ...]) -> torch.Tensor:
        try:
            values = dequantize(data, stored.kind)
        except NotImplementedError as error:
            raise ModelLoadError(f"{self._path}: cannot expand {stored.kind.name} tensors", tensor=name) from error
        return self._dialect.restore(name, torch.from_numpy(np.ascontiguousarray(values).reshape(shape)), self._config)

    def weights_identity(self) -> str:
        digest = hashlib.sha256()
        for name, stored in sorted(self._tensors.items()):
            digest.update(f"{name}|{stored.shape}|{int(stored.kind)}|{stored.offset}\n".encode())
        digest.update(sample_file(self._path, self._data_offset))
        return digest.hexdigest()

    def tokenizer_identity(self) -> str:
        return self._tokenizer_identity

    def _hf_name(self, name: str) -> str:
        prefix, short = "", name
        if name.startswith(_BLOCK_PREFIX):
            number, _, short = name.removeprefix(_BLOCK_PREFIX).partition(".")
            prefix = f"model.layers.{number}."
        if short not in self._dialect.tensor_names:
            raise ModelLoadError(f"{self._path} holds a tensor {name} that {self._dialect.architecture} does not have")
        return prefix + self._dialect.tensor_names[short]


def _stored(tensor: ReaderTensor) -> _Stored:
    shape = tuple(int(extent) for extent in reversed(tensor.shape))  # GGUF lists the fastest axis first
    data = tensor.data
    return _Stored(GGMLQuantizationType(tensor.tensor_type), int(tensor.data_offset), shape, data.shape, data.dtype)


def _identity_of_tokenizer(metadata: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(metadata.items()):
        if key.startswith("tokenizer."):
            digest.update(f"{key}={value!r}\n".encode())
    return digest.hexdigest()
