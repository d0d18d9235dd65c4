"""DeepSeek-V3 (arXiv:2412.19437) and the Kimi K2 models of the same architecture, text part.

Latent attention with interleaved rope in all layers, a few dense blocks, then MoE with grouped sigmoid routing.
Multi-token-prediction layers and vision towers in a checkpoint are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from prfaas.model.config_reader import ConfigReader, text_config
from prfaas.model.families._mla import LatentConfig, latent_group, parse_latent_shape, read_latent_attention
from prfaas.model.families._moe import ExpertNames, MoeConfig, parse_moe, read_moe
from prfaas.model.family import Family, Outline, RawConfig
from prfaas.model.layers.linear import read_head
from prfaas.model.layers.mlp import read_mlp
from prfaas.model.layers.norm import RmsNorm, read_norm
from prfaas.model.layers.rope import Rope, read_frequencies, yarn_mscale
from prfaas.model.network import Block, DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import DType, ModelSpec

_GROUP, _ROPE = "full", "rope"
_EXPERT_NAMES = ExpertNames(gate="gate_proj", up="up_proj", down="down_proj")
_MULTIMODAL = ("KimiK25ForConditionalGeneration", "Kimi_K25ForConditionalGeneration")


@dataclass(frozen=True, slots=True)
class DeepseekConfig:
    """`prefix` goes before every tensor name of the text part."""

    prefix: str
    vocab_size: int
    hidden: int
    inner: int
    num_layers: int
    num_dense: int
    moe_freq: int
    eps: float
    max_context_tokens: int
    tied: bool
    latent: LatentConfig
    interleaved: bool
    moe: MoeConfig


def parse(raw: RawConfig) -> DeepseekConfig:
    """Read a configuration. Raises ModelLoadError for a missing key or a variant that is not computed."""
    config = text_config(raw)
    config.require_equal("hidden_act", ["silu"], "silu")
    shape, hidden = parse_latent_shape(config), config.integer("hidden_size")
    query_rank = config.integer("q_lora_rank") if config.has("q_lora_rank") else None
    return DeepseekConfig(
        prefix="language_model." if ConfigReader(raw).has("text_config") else "",
        vocab_size=config.integer("vocab_size"),
        hidden=hidden,
        inner=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        num_dense=config.integer("first_k_dense_replace", default=0),
        moe_freq=config.integer("moe_layer_freq", default=1),
        eps=config.number("rms_norm_eps", default=1e-6),
        max_context_tokens=config.integer("max_position_embeddings"),
        tied=config.boolean("tie_word_embeddings", default=False),
        latent=LatentConfig(hidden, shape, query_rank, _softmax_scale(config, shape.query), _ROPE),
        interleaved=config.boolean("rope_interleave", default=True),
        moe=parse_moe(config),
    )


def _softmax_scale(config: ConfigReader, query_width: int) -> float:
    """query_width^-0.5, times the square of yarn's temperature where mscale_all_dim asks for it."""
    found = config.section("rope_parameters", "rope_scaling", required=False)
    scale = 1.0 / math.sqrt(query_width)
    mscale = found.number("mscale_all_dim", default=0.0)
    if found.text("rope_type", "type", default="default") == "default" or not mscale:
        return scale
    temperature = yarn_mscale(found.number("factor"), mscale)
    return scale * temperature * temperature


def outline(raw: RawConfig, dtype: DType) -> Outline:
    """One FULL group of latents for every layer."""
    config = parse(raw)
    group = latent_group(_GROUP, tuple(range(config.num_layers)), config.latent.shape, dtype)
    return Outline(config.vocab_size, config.num_layers, config.max_context_tokens, (group,))


def build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    """Read all weights of the text part."""
    config = parse(raw)
    base = f"{config.prefix}model"
    frequencies = read_frequencies(text_config(raw), config.latent.shape.rope, weights.device)
    embedding = weights.take(f"{base}.embed_tokens.weight", (config.vocab_size, config.hidden))
    return DecoderNetwork(
        spec=spec,
        device=weights.device,
        dtype=weights.dtype,
        embedding=embedding,
        blocks=tuple(_block(config, weights, f"{base}.layers.{i}", i) for i in range(config.num_layers)),
        norm=_norm(config, weights, f"{base}.norm"),
        head=read_head(weights, f"{config.prefix}lm_head", embedding, tied=config.tied),
        ropes={_ROPE: Rope(frequencies.values, config.interleaved, frequencies.magnitude)},
    )


def _block(config: DeepseekConfig, weights: WeightReader, prefix: str, layer: int) -> Block:
    is_moe = layer >= config.num_dense and layer % config.moe_freq == 0
    return Block(
        mixer_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
        mixer=read_latent_attention(weights, f"{prefix}.self_attn", _GROUP, config.latent),
        ffn_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
        ffn=read_moe(weights, f"{prefix}.mlp", config.moe, config.hidden, _EXPERT_NAMES)
        if is_moe
        else read_mlp(weights, f"{prefix}.mlp", config.hidden, config.inner),
    )


def _norm(config: DeepseekConfig, weights: WeightReader, name: str) -> RmsNorm:
    return read_norm(weights, name, config.hidden, config.eps)


def _ignorable(raw: RawConfig, name: str) -> bool:
    """Vision parts, layers past the last one (multi-token prediction), stored rope frequencies."""
    config = parse(raw)
    if config.prefix and not name.startswith(config.prefix):
        return True
    number = name.removeprefix(f"{config.prefix}model.layers.").partition(".")[0]
    return name.endswith("rotary_emb.inv_freq") or (number.isdigit() and int(number) >= config.num_layers)


FAMILY = Family(
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM", *_MULTIMODAL),
    outline=outline,
    build=build,
    ignorable=_ignorable,
)
