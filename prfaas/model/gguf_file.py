"""A GGUF file seen as a Hugging Face checkpoint: metadata become a configuration, quantised tensors are expanded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor
from gguf.quants import dequantize

from prfaas.errors import ModelLoadError
from prfaas.model.family import GgufDialect
from prfaas.model.hf_directory import sample_file

_BLOCK_PREFIX = "blk."
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})  # precomputed by the converter, follows from the metadata


class GgufFile:
    """Implements `Checkpoint`. `find_dialect` maps general.architecture to the family's dialect.

    Raises ModelLoadError for an unreadable file, an unknown architecture or a tensor without a known name.
    """

    def __init__(self, path: Path, find_dialect: Callable[[str], GgufDialect]) -> None:
        self._path = path
        try:
            self._reader = GGUFReader(str(path))
            self._metadata: dict[str, Any] = {key: field.contents() for key, field in self._reader.fields.items()}
        except (OSError, ValueError, IndexError, KeyError) as error:
            raise ModelLoadError(f"{path} is not a readable GGUF file: {error}") from error
        self._dialect = find_dialect(str(self._metadata.get("general.architecture")))
        self._tensors: dict[str, ReaderTensor] = {}
        for tensor in self._reader.tensors:
            if tensor.name not in _NOT_WEIGHTS:
                self._tensors[self._hf_name(tensor.name)] = tensor
        config = self._dialect.config(self._metadata)
        embedding = self._tensors.get("model.embed_tokens.weight")
        if embedding is None:
            raise ModelLoadError(f"{path} has no token embedding")
        self._config = {
            **config,
            "vocab_size": int(embedding.shape[1]),
            "tie_word_embeddings": "lm_head.weight" not in self._tensors,
        }

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """GGUF's end-of-sequence, end-of-turn and end-of-message ids, as far as they are given."""
        keys = ("eos_token_id", "eot_token_id", "eom_token_id")
        found = (self._metadata.get(f"tokenizer.ggml.{key}") for key in keys)
        return tuple(dict.fromkeys(int(value) for value in found if value is not None))

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: _shape(tensor) for name, tensor in self._tensors.items()}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor expanded to float32 (quantised types) or as stored (float types)."""
        if name not in self._tensors:
            raise ModelLoadError(f"{self._path} has no tensor {name}", tensor=name)
        stored = self._tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            kind = GGMLQuantizationType(stored.tensor_type).name
            raise ModelLoadError(f"{self._path}: cannot expand {kind} tensors", tensor=name) from error
        dense = torch.from_numpy(
            np.array(values, copy=None if values.flags.writeable else True, order="C").reshape(_shape(stored))
        )
        return self._dialect.restore(name, dense, self._config)

    def weights_identity(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors.items()):
            digest.update(f"{name}|{_shape(tensor)}|{int(tensor.tensor_type)}|{int(tensor.data_offset)}\n".encode())
        digest.update(sample_file(self._path, int(self._reader.data_offset)))
        return digest.hexdigest()

    def tokenizer_identity(self) -> str:
        digest = hashlib.sha256()
        for key, value in sorted(self._metadata.items()):
            if key.startswith("tokenizer."):
                digest.update(f"{key}={value!r}\n".encode())
        return digest.hexdigest()

    def _hf_name(self, name: str) -> str:
        prefix, short = "", name
        if name.startswith(_BLOCK_PREFIX):
            number, _, short = name.removeprefix(_BLOCK_PREFIX).partition(".")
            prefix = f"model.layers.{number}."
        if short not in self._dialect.tensor_names:
            raise ModelLoadError(f"{self._path} holds a tensor {name} that {self._dialect.architecture} does not have")
        return prefix + self._dialect.tensor_names[short]


def _shape(tensor: ReaderTensor) -> tuple[int, ...]:
    """GGUF lists the fastest axis first."""
    return tuple(int(extent) for extent in reversed(tensor.shape))
