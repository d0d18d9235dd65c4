"""What a family of architectures declares to the registry. One file per family in `prfaas.model.families`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prfaas.model.network import DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, ModelSpec

RawConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Outline:
    """What a configuration says before any weight is read."""

    vocab_size: int
    num_layers: int
    max_context_tokens: int
    groups: tuple[CacheGroup, ...]


@dataclass(frozen=True, slots=True)
class GgufDialect:
    """How a GGUF architecture maps to Hugging Face terms.

    config: metadata -> configuration. tensor_names: GGUF name (without the block prefix) -> Hugging Face name (without
    the layer prefix), `blk.N.` becoming `model.layers.N.`. restore(name, rows, config): undo what the converter did
    to the values of some whole rows of a tensor, as many as a multiple of `row_unit(config)` or all of them.
    """

    architecture: str
    config: Callable[[Mapping[str, Any]], dict[str, Any]]
    tensor_names: Mapping[str, str]
    restore: Callable[[str, torch.Tensor, RawConfig], torch.Tensor]
    row_unit: Callable[[RawConfig], int] = lambda _config: 1


@dataclass(frozen=True, slots=True)
class Family:
    """outline(config, dtype) describes, build(config, spec, weights) reads the weights and returns the network.

    ignorable(config, name): tensors that a checkpoint may hold and this network does not use.
    """

    name: str
    architectures: tuple[str, ...]
    outline: Callable[[RawConfig, DType], Outline]
    build: Callable[[RawConfig, ModelSpec, WeightReader], DecoderNetwork]
    ignorable: Callable[[RawConfig, str], bool]
    gguf: tuple[GgufDialect, ...] = ()
