"""Qwen3.5, dense and with experts, text part: the DeltaNet projections are stored separately."""

from __future__ import annotations

from prfaas.model.config_reader import ConfigReader, text_config
from prfaas.model.families._qwen_hybrid import HybridConfig, Names, build_hybrid, outline_hybrid, parse_hybrid
from prfaas.model.family import Family, Outline, RawConfig
from prfaas.model.layers.linear import Linear, read_linear
from prfaas.model.network import DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import DType, ModelSpec


def _names(raw: RawConfig) -> Names:
    nested = ConfigReader(raw).has("text_config")
    return Names(base="model.language_model" if nested else "model", head="lm_head")


def _parse(raw: RawConfig) -> HybridConfig:
    text = text_config(raw)
    tied = ConfigReader(raw).boolean("tie_word_embeddings", default=text.boolean("tie_word_embeddings", default=False))
    return parse_hybrid(text, tied=tied)


def _outline(raw: RawConfig, dtype: DType) -> Outline:
    return outline_hybrid(_parse(raw), dtype)


def _build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    return build_hybrid(_parse(raw), text_config(raw), _names(raw), spec, weights, _read_projection)


def _read_projection(weights: WeightReader, prefix: str, config: HybridConfig) -> Linear:
    shape = config.delta
    heads = shape.num_value_heads
    names = [f"{prefix}.in_proj_{x}" for x in ("qkv", "z", "b", "a")]
    return read_linear(weights, names, [shape.conv_dim, heads * shape.value_dim, heads, heads], config.hidden)


def _ignorable(raw: RawConfig, name: str) -> bool:
    """Multi-token prediction; vision parts; a head that repeats the embedding."""
    vision = ConfigReader(raw).has("text_config") and name.startswith("model.visual.")
    return vision or name.startswith("mtp.") or (name == "lm_head.weight" and _parse(raw).tied)


FAMILY = Family(
    name="qwen3_5",
    architectures=(
        "Qwen3_5ForCausalLM",
        "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeForConditionalGeneration",
    ),
    outline=_outline,
    build=_build,
    ignorable=_ignorable,
)
