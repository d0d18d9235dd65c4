"""What Qwen3-Next and Qwen3.5 share: gated attention, gated DeltaNet, softmax-routed experts with a gated shared one.

They differ in how the DeltaNet projections are stored and in the names around the text part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader
from prfaas.model.families._moe import ExpertNames, ExpertShape, read_experts
from prfaas.model.family import Outline
from prfaas.model.layers.delta import DeltaCore, DeltaShape
from prfaas.model.layers.gdn import GatedDeltaNet
from prfaas.model.layers.gqa import GroupedQueryAttention, HeadShape
from prfaas.model.layers.linear import Linear, read_head, read_linear
from prfaas.model.layers.mlp import read_mlp
from prfaas.model.layers.moe import GatedFeedForward, MixtureOfExperts, SoftmaxRouter
from prfaas.model.layers.norm import GatedRmsNorm, RmsNorm, read_norm
from prfaas.model.layers.rope import Rope, read_frequencies
from prfaas.model.network import Block, DecoderNetwork, FeedForward, Mixer
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, GroupKind, ModelSpec, TensorSpec

_FULL, _STATE, _ROPE = "full", "state", "rope"
_EXPERT_NAMES = ExpertNames(gate="gate_proj", up="up_proj", down="down_proj")


@dataclass(frozen=True, slots=True)
class MoeFields:
    """Routed and shared experts of a sparse layer."""

    num_experts: int
    top_k: int
    inner: int
    shared_inner: int
    normalise: bool


@dataclass(frozen=True, slots=True)
class HybridConfig:
    """`is_full`: by layer, attention or DeltaNet. `sparse`: layers with experts."""

    vocab_size: int
    hidden: int
    inner: int
    is_full: tuple[bool, ...]
    sparse: frozenset[int]
    heads: HeadShape
    rotated: int
    delta: DeltaShape
    conv_taps: int
    moe: MoeFields | None
    eps: float
    max_context_tokens: int
    tied: bool


@dataclass(frozen=True, slots=True)
class Names:
    """Tensor names outside the layers: prefix of embedding, layers and final norm, and the head."""

    base: str
    head: str


ReadProjection = Callable[[WeightReader, str, HybridConfig], Linear]


def parse_hybrid(config: ConfigReader, *, tied: bool) -> HybridConfig:
    """Read the text part of a configuration. Raises ModelLoadError for a missing key or an unsupported variant."""
    config.require_equal("hidden_act", ["silu"], "silu")
    config.require_equal("attention_bias", [False], False)
    num_layers, head_dim = config.integer("num_hidden_layers"), config.integer("head_dim", default=256)
    rope = config.section("rope_parameters", "rope_scaling", required=False)
    part = rope.number("partial_rotary_factor", default=config.number("partial_rotary_factor", default=0.25))
    every = config.integer("decoder_sparse_step", default=1)
    dense = set(config.integers("mlp_only_layers", default=()))
    moe = _parse_moe(config)
    is_sparse = [moe is not None and i not in dense and (i + 1) % every == 0 for i in range(num_layers)]
    return HybridConfig(
        vocab_size=config.integer("vocab_size"),
        hidden=config.integer("hidden_size"),
        inner=config.integer("intermediate_size", default=0),
        is_full=_layer_kinds(config, num_layers),
        sparse=frozenset(i for i, sparse in enumerate(is_sparse) if sparse),
        heads=HeadShape(config.integer("num_attention_heads"), config.integer("num_key_value_heads"), head_dim),
        rotated=int(head_dim * part),
        delta=DeltaShape(
            config.integer("linear_num_key_heads"),
            config.integer("linear_num_value_heads"),
            config.integer("linear_key_head_dim"),
            config.integer("linear_value_head_dim"),
        ),
        conv_taps=config.integer("linear_conv_kernel_dim", default=4),
        moe=moe,
        eps=config.number("rms_norm_eps", default=1e-6),
        max_context_tokens=config.integer("max_position_embeddings", default=32768),
        tied=tied,
    )


def _parse_moe(config: ConfigReader) -> MoeFields | None:
    if config.integer("num_experts", default=0) == 0:
        return None
    return MoeFields(
        config.integer("num_experts"),
        config.integer("num_experts_per_tok"),
        config.integer("moe_intermediate_size"),
        config.integer("shared_expert_intermediate_size"),
        config.boolean("norm_topk_prob", default=True),
    )


def _layer_kinds(config: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    if not config.has("layer_types"):
        period = config.integer("full_attention_interval", default=4)
        return tuple((i + 1) % period == 0 for i in range(num_layers))
    kinds = config.texts("layer_types")
    if len(kinds) != num_layers or not set(kinds) <= {"full_attention", "linear_attention"}:
        raise ModelLoadError(f"layer_types must name {num_layers} layers as full_attention or linear_attention")
    return tuple(kind == "full_attention" for kind in kinds)


def outline_hybrid(config: HybridConfig, dtype: DType) -> Outline:
    """A FULL group with "k" and "v", and a STATE group with "recurrent" and "conv"."""
    entry, delta = (config.heads.num_kv_heads, config.heads.head_dim), config.delta
    paged = (TensorSpec("k", entry, dtype), TensorSpec("v", entry, dtype))
    state = (
        TensorSpec("recurrent", (delta.num_value_heads, delta.key_dim, delta.value_dim), DType.F32),
        TensorSpec("conv", (config.conv_taps - 1, delta.conv_dim), dtype),
    )
    groups = (
        CacheGroup(_FULL, GroupKind.FULL, tuple(i for i, full in enumerate(config.is_full) if full), paged),
        CacheGroup(_STATE, GroupKind.STATE, tuple(i for i, full in enumerate(config.is_full) if not full), state),
    )
    present = tuple(group for group in groups if group.layers)
    return Outline(config.vocab_size, len(config.is_full), config.max_context_tokens, present)


def build_hybrid(
    config: HybridConfig,
    text: ConfigReader,
    names: Names,
    spec: ModelSpec,
    weights: WeightReader,
    read_projection: ReadProjection,
) -> DecoderNetwork:
    """Read all weights; `read_projection` reads PREFIX's DeltaNet projections as rows q, k, v, gate, beta, decay."""
    frequencies = read_frequencies(text, config.rotated, weights.device)
    embedding = weights.take(f"{names.base}.embed_tokens.weight", (config.vocab_size, config.hidden))
    blocks = []
    for layer, is_full in enumerate(config.is_full):
        prefix = f"{names.base}.layers.{layer}"
        mixer: Mixer
        if is_full:
            mixer = _attention(config, weights, f"{prefix}.self_attn")
        else:
            linear = f"{prefix}.linear_attn"
            mixer = _delta_net(config, weights, linear, read_projection(weights, linear, config))
        blocks.append(
            Block(
                mixer_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
                mixer=mixer,
                ffn_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
                ffn=_feed_forward(config, weights, f"{prefix}.mlp", layer),
            )
        )
    return DecoderNetwork(
        spec=spec,
        device=weights.device,
        dtype=weights.dtype,
        embedding=embedding,
        blocks=tuple(blocks),
        norm=_norm(config, weights, f"{names.base}.norm"),
        head=read_head(weights, names.head, embedding, tied=config.tied),
        ropes={_ROPE: Rope(frequencies.values, magnitude=frequencies.magnitude)},
    )


def _attention(config: HybridConfig, weights: WeightReader, prefix: str) -> GroupedQueryAttention:
    heads, hidden = config.heads, config.hidden
    width, kv_width = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    return GroupedQueryAttention(
        group=_FULL,
        rope=_ROPE,
        heads=heads,
        scale=heads.head_dim**-0.5,
        window_tokens=None,
        kernels=weights.kernels,
        qkv=read_linear(weights, [f"{prefix}.{x}_proj" for x in "qkv"], [2 * width, kv_width, kv_width], hidden),
        out=read_linear(weights, [f"{prefix}.o_proj"], [hidden], width),
        q_norm=_norm(config, weights, f"{prefix}.q_norm", heads.head_dim),
        k_norm=_norm(config, weights, f"{prefix}.k_norm", heads.head_dim),
        gated=True,
    )


def _delta_net(config: HybridConfig, weights: WeightReader, prefix: str, project: Linear) -> GatedDeltaNet:
    shape = config.delta
    heads = shape.num_value_heads
    taps = weights.take(f"{prefix}.conv1d.weight", (shape.conv_dim, config.conv_taps))
    return GatedDeltaNet(
        group=_STATE,
        core=DeltaCore(shape, taps.t().contiguous(), weights.kernels),
        project=project,
        rate=weights.take(f"{prefix}.A_log", (heads,), torch.float32).exp(),
        bias=weights.take(f"{prefix}.dt_bias", (heads,), torch.float32),
        norm=GatedRmsNorm(weights.take(f"{prefix}.norm.weight", (shape.value_dim,), torch.float32), config.eps, silu=True),
        out=read_linear(weights, [f"{prefix}.out_proj"], [config.hidden], heads * shape.value_dim),
    )


def _feed_forward(config: HybridConfig, weights: WeightReader, prefix: str, layer: int) -> FeedForward:
    if layer not in config.sparse or config.moe is None:
        return read_mlp(weights, prefix, config.hidden, config.inner)
    moe, hidden = config.moe, config.hidden
    gate = weights.take(f"{prefix}.gate.weight", (moe.num_experts, hidden))
    shared = GatedFeedForward(
        read_linear(weights, [f"{prefix}.shared_expert_gate"], [1], hidden),
        read_mlp(weights, f"{prefix}.shared_expert", hidden, moe.shared_inner),
    )
    experts = read_experts(weights, prefix, ExpertShape(moe.num_experts, hidden, moe.inner), _EXPERT_NAMES)
    return MixtureOfExperts(SoftmaxRouter(gate, moe.top_k, moe.normalise), experts, shared)


def _norm(config: HybridConfig, weights: WeightReader, name: str, width: int | None = None) -> RmsNorm:
    """Stored as the difference from one."""
    return read_norm(weights, name, width or config.hidden, config.eps, centred=True)
