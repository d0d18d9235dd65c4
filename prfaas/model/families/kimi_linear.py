"""Kimi Linear (arXiv:2510.26692): Kimi Delta Attention with a few position-free latent-attention layers, and MoE."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader
from prfaas.model.families._mla import LatentConfig, latent_group, parse_latent_shape, read_latent_attention
from prfaas.model.families._moe import ExpertNames, MoeConfig, parse_moe, read_moe
from prfaas.model.family import Family, Outline, RawConfig
from prfaas.model.layers.delta import DeltaCore, DeltaShape
from prfaas.model.layers.kda import ForgetGate, KimiDeltaAttention
from prfaas.model.layers.linear import Linear, read_head, read_linear
from prfaas.model.layers.mla import LatentShape
from prfaas.model.layers.mlp import read_mlp
from prfaas.model.layers.norm import GatedRmsNorm, RmsNorm, read_norm
from prfaas.model.network import Block, DecoderNetwork, FeedForward, Mixer
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, GroupKind, ModelSpec, TensorSpec

_FULL, _STATE = "full", "state"
_EXPERT_NAMES = ExpertNames(gate="w1", up="w3", down="w2")


@dataclass(frozen=True, slots=True)
class KimiLinearConfig:
    """Layer indices count from zero. `gate_rank`: width between the two products of the output and forget gates."""

    vocab_size: int
    hidden: int
    inner: int
    num_layers: int
    dense_layers: frozenset[int]
    eps: float
    max_context_tokens: int
    tied: bool
    latent: LatentShape
    delta: DeltaShape
    conv_taps: int
    full_layers: tuple[int, ...]
    state_layers: tuple[int, ...]
    moe: MoeConfig
    lower_bound: float | None
    full_rank_gate: bool


def parse(raw: RawConfig) -> KimiLinearConfig:
    """Read a configuration. Raises ModelLoadError for a missing key or a variant that is not computed."""
    config = ConfigReader(raw)
    linear = config.section("linear_attn_config")
    config.require_equal("hidden_act", ["silu"], "silu")
    config.require_equal("q_lora_rank", [None], None)
    config.require_equal("mla_use_nope", [True], True)
    config.require_equal("num_nextn_predict_layers", [0], 0)
    num_layers, heads, dim = config.integer("num_hidden_layers"), linear.integer("num_heads"), linear.integer("head_dim")
    full = tuple(sorted(i - 1 for i in linear.integers("full_attn_layers")))
    state = tuple(sorted(i - 1 for i in linear.integers("kda_layers")))
    if sorted(full + state) != list(range(num_layers)):
        raise ModelLoadError("full_attn_layers and kda_layers must name every layer once, counting from 1")
    return KimiLinearConfig(
        vocab_size=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        inner=config.integer("intermediate_size"),
        num_layers=num_layers,
        dense_layers=_dense_layers(config, num_layers),
        eps=config.number("rms_norm_eps"),
        max_context_tokens=config.integer("model_max_length", "max_position_embeddings"),
        tied=config.boolean("tie_word_embeddings", default=False),
        latent=parse_latent_shape(config),
        delta=DeltaShape(heads, heads, dim, dim),
        conv_taps=linear.integer("short_conv_kernel_size"),
        full_layers=full,
        state_layers=state,
        moe=parse_moe(config),
        lower_bound=linear.number("gate_lower_bound") if linear.has("gate_lower_bound") else None,
        full_rank_gate=linear.boolean("use_full_rank_gate", default=False),
    )


def _dense_layers(config: ConfigReader, num_layers: int) -> frozenset[int]:
    """Layers with a plain feed-forward: named one by one (transformers), or the first few (published checkpoints)."""
    if config.has("mlp_layer_types"):
        kinds = config.texts("mlp_layer_types")
        return frozenset(i for i, kind in enumerate(kinds) if kind == "dense")
    first, every = config.integer("first_k_dense_replace", default=1), config.integer("moe_layer_freq", default=1)
    return frozenset(i for i in range(num_layers) if i < first or i % every)


def outline(raw: RawConfig, dtype: DType) -> Outline:
    """A FULL group of latents and a STATE group of recurrent states and convolution histories."""
    config = parse(raw)
    delta = config.delta
    state = (
        TensorSpec("recurrent", (delta.num_value_heads, delta.key_dim, delta.value_dim), DType.F32),
        TensorSpec("conv", (config.conv_taps - 1, delta.conv_dim), dtype),
    )
    groups: tuple[CacheGroup, ...] = (
        latent_group(_FULL, config.full_layers, config.latent, dtype),
        CacheGroup(_STATE, GroupKind.STATE, config.state_layers, state),
    )
    groups = tuple(group for group in groups if group.layers)
    return Outline(config.vocab_size, config.num_layers, config.max_context_tokens, groups)


def build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    """Read all weights; names as in moonshotai/Kimi-Linear-48B-A3B-Instruct."""
    config = parse(raw)
    embedding = weights.take("model.embed_tokens.weight", (config.vocab_size, config.hidden))
    return DecoderNetwork(
        spec=spec,
        device=weights.device,
        dtype=weights.dtype,
        embedding=embedding,
        blocks=tuple(_block(config, weights, i) for i in range(config.num_layers)),
        norm=_norm(config, weights, "model.norm"),
        head=read_head(weights, "lm_head", embedding, tied=config.tied),
        ropes={},
    )


def _block(config: KimiLinearConfig, weights: WeightReader, layer: int) -> Block:
    prefix = f"model.layers.{layer}"
    attention = f"{prefix}.self_attn"
    mixer: Mixer
    if layer in config.full_layers:
        shape = config.latent
        latent = LatentConfig(config.hidden, shape, query_rank=None, scale=shape.query**-0.5, rope=None)
        mixer = read_latent_attention(weights, attention, _FULL, latent)
    else:
        mixer = _delta_attention(config, weights, attention)
    return Block(
        mixer_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
        mixer=mixer,
        ffn_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
        ffn=_feed_forward(config, weights, prefix, layer),
    )


def _feed_forward(config: KimiLinearConfig, weights: WeightReader, prefix: str, layer: int) -> FeedForward:
    if layer not in config.dense_layers:
        return read_moe(weights, f"{prefix}.block_sparse_moe", config.moe, config.hidden, _EXPERT_NAMES)
    # transformers writes a dense layer under the name of the experts' module; the published checkpoint does not.
    written = weights.first_of([f"{prefix}.mlp.gate_proj.weight", f"{prefix}.block_sparse_moe.gate_proj.weight"])
    return read_mlp(weights, written.removesuffix(".gate_proj.weight"), config.hidden, config.inner)


def _delta_attention(config: KimiLinearConfig, weights: WeightReader, prefix: str) -> KimiDeltaAttention:
    shape, hidden = config.delta, config.hidden
    heads, dim = shape.num_value_heads, shape.key_dim
    width = heads * dim
    taps = [weights.take(f"{prefix}.{x}_conv1d.weight", (width, config.conv_taps)) for x in "qkv"]
    forget = ForgetGate(
        down=read_linear(weights, [f"{prefix}.f_a_proj"], [dim], hidden),
        up=read_linear(weights, [f"{prefix}.f_b_proj"], [width], dim),
        rate=weights.take(f"{prefix}.A_log", (heads, 1), torch.float32).exp(),
        bias=weights.take(f"{prefix}.dt_bias", (width,), torch.float32),
        lower_bound=config.lower_bound,
    )
    gate: tuple[Linear, ...]
    if config.full_rank_gate:
        gate = (read_linear(weights, [f"{prefix}.g_proj"], [width], hidden),)
    else:
        gate = (
            read_linear(weights, [f"{prefix}.g_a_proj"], [dim], hidden),
            read_linear(weights, [f"{prefix}.g_b_proj"], [width], dim),
        )
    return KimiDeltaAttention(
        group=_STATE,
        core=DeltaCore(shape, torch.cat(taps).t().contiguous(), weights.kernels),
        qkv_beta=read_linear(weights, [f"{prefix}.{x}_proj" for x in "qkvb"], [width, width, width, heads], hidden),
        forget=forget,
        gate=gate,
        norm=GatedRmsNorm(weights.take(f"{prefix}.o_norm.weight", (dim,), torch.float32), config.eps, silu=False),
        out=read_linear(weights, [f"{prefix}.o_proj"], [hidden], width),
    )


def _norm(config: KimiLinearConfig, weights: WeightReader, name: str) -> RmsNorm:
    return read_norm(weights, name, config.hidden, config.eps)


FAMILY = Family(
    name="kimi_linear",
    architectures=("KimiLinearForCausalLM",),
    outline=outline,
    build=build,
    ignorable=lambda _raw, name: name.endswith("rotary_emb.inv_freq"),
)
