"""Qwen3-Next: the DeltaNet projections are stored interleaved by key head and are put in order when read."""

from __future__ import annotations

import torch

from prfaas.model.config_reader import ConfigReader
from prfaas.model.families._qwen_hybrid import HybridConfig, Names, build_hybrid, outline_hybrid, parse_hybrid
from prfaas.model.family import Family, Outline, RawConfig
from prfaas.model.layers.linear import Linear
from prfaas.model.network import DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import DType, ModelSpec

_NAMES = Names(base="model", head="lm_head")


def _parse(raw: RawConfig) -> HybridConfig:
    config = ConfigReader(raw)
    return parse_hybrid(config, tied=config.boolean("tie_word_embeddings", default=False))


def _outline(raw: RawConfig, dtype: DType) -> Outline:
    return outline_hybrid(_parse(raw), dtype)


def _build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    return build_hybrid(_parse(raw), ConfigReader(raw), _NAMES, spec, weights, _read_projection)


def _read_projection(weights: WeightReader, prefix: str, config: HybridConfig) -> Linear:
    """in_proj_qkvz has, for each key head, the rows of its q, k, v and gate; in_proj_ba those of beta and decay."""
    shape, hidden = config.delta, config.hidden
    heads = shape.num_key_heads
    per_head = shape.num_value_heads // heads
    values = per_head * shape.value_dim
    sizes = (shape.key_dim, shape.key_dim, values, values)
    big = weights.take(f"{prefix}.in_proj_qkvz.weight", (heads * sum(sizes), hidden))
    small = weights.take(f"{prefix}.in_proj_ba.weight", (heads * 2 * per_head, hidden))
    parts = [
        *big.view(heads, sum(sizes), hidden).split_with_sizes(sizes, dim=1),
        *small.view(heads, 2 * per_head, hidden).split_with_sizes((per_head, per_head), dim=1),
    ]
    return Linear(torch.cat([part.flatten(0, 1) for part in parts]), None, weights.kernels)


FAMILY = Family(
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    outline=_outline,
    build=_build,
    ignorable=lambda _raw, name: name.startswith("mtp."),
)
