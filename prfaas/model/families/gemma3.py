"""Gemma 3 (arXiv:2503.19786), text part: sliding-window layers with a full one now and then, norms around each half."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.config_reader import ConfigReader, text_config
from prfaas.model.family import Family, GgufDialect, Outline, RawConfig
from prfaas.model.layers.gqa import GroupedQueryAttention, HeadShape
from prfaas.model.layers.linear import read_head, read_linear
from prfaas.model.layers.mlp import Activation, read_mlp
from prfaas.model.layers.norm import RmsNorm, read_norm
from prfaas.model.layers.rope import Rope, read_frequencies
from prfaas.model.network import Block, DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, GroupKind, ModelSpec, TensorSpec

_FULL, _SLIDING = "full", "sliding"
_KINDS = {"full_attention": _FULL, "sliding_attention": _SLIDING}


@dataclass(frozen=True, slots=True)
class GemmaConfig:
    """`groups` names each layer's cache group; `window` counts the query itself. `prefix` goes before tensor names."""

    prefix: str
    vocab_size: int
    hidden: int
    inner: int
    heads: HeadShape
    scale: float
    eps: float
    window: int
    groups: tuple[str, ...]
    max_context_tokens: int
    tied: bool


def parse(raw: RawConfig) -> GemmaConfig:
    """Read a configuration. Raises ModelLoadError for a missing key or a variant that is not computed."""
    config = text_config(raw)
    config.require_equal("hidden_activation", ["gelu_pytorch_tanh"], "gelu_pytorch_tanh")
    config.require_equal("attention_bias", [False], False)
    config.require_equal("use_bidirectional_attention", [False], False)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        config.require_equal(key, [None], None)
    num_layers = config.integer("num_hidden_layers")
    head_dim = config.integer("head_dim", default=256)
    return GemmaConfig(
        prefix="language_model." if ConfigReader(raw).has("text_config") else "",
        vocab_size=config.integer("vocab_size", default=262_208),
        hidden=config.integer("hidden_size"),
        inner=config.integer("intermediate_size"),
        heads=HeadShape(
            config.integer("num_attention_heads", default=8), config.integer("num_key_value_heads", default=4), head_dim
        ),
        scale=config.number("query_pre_attn_scalar", default=256.0) ** -0.5,
        eps=config.number("rms_norm_eps", default=1e-6),
        window=config.integer("sliding_window", default=4096),
        groups=_groups(config, num_layers),
        max_context_tokens=config.integer("max_position_embeddings", default=131_072),
        tied=config.boolean("tie_word_embeddings", default=True),
    )


def _groups(config: ConfigReader, num_layers: int) -> tuple[str, ...]:
    """Cache groups by layer, from a list of kinds or from the period of full layers."""
    if not config.has("layer_types"):
        period = config.integer("sliding_window_pattern", default=6)
        return tuple(_SLIDING if (i + 1) % period else _FULL for i in range(num_layers))
    kinds = config.texts("layer_types")
    if len(kinds) != num_layers or not set(kinds) <= set(_KINDS):
        raise ModelLoadError(f"layer_types must name {num_layers} layers, each one of {sorted(_KINDS)}")
    return tuple(_KINDS[kind] for kind in kinds)


def outline(raw: RawConfig, dtype: DType) -> Outline:
    """A FULL and a SLIDING group, both with "k" and "v" [Hkv, d]."""
    config = parse(raw)
    entry = (config.heads.num_kv_heads, config.heads.head_dim)
    tensors = (TensorSpec("k", entry, dtype), TensorSpec("v", entry, dtype))
    groups = []
    for name, kind, window in ((_FULL, GroupKind.FULL, None), (_SLIDING, GroupKind.SLIDING, config.window)):
        layers = tuple(i for i, group in enumerate(config.groups) if group == name)
        if layers:
            groups.append(CacheGroup(name, kind, layers, tensors, window))
    return Outline(config.vocab_size, len(config.groups), config.max_context_tokens, tuple(groups))


def build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    """Read all weights of the text part."""
    config = parse(raw)
    base = f"{config.prefix}model"
    embedding = weights.take(f"{base}.embed_tokens.weight", (config.vocab_size, config.hidden))
    return DecoderNetwork(
        spec=spec,
        device=weights.device,
        dtype=weights.dtype,
        embedding=embedding,
        blocks=tuple(_block(config, weights, f"{base}.layers.{i}", g) for i, g in enumerate(config.groups)),
        norm=_norm(config, weights, f"{base}.norm"),
        head=read_head(weights, f"{config.prefix}lm_head", embedding, tied=config.tied),
        ropes={group: _rope(raw, config, group, weights.device) for group in sorted(set(config.groups))},
        embedding_scale=float(torch.tensor(config.hidden**0.5).to(weights.dtype)),
    )


def _rope(raw: RawConfig, config: GemmaConfig, group: str, device: torch.device) -> Rope:
    """Full layers turn slowly (and may be scaled), sliding ones by rope_local_base_freq; either spelling."""
    text = text_config(raw)
    nested = text.section("rope_parameters", required=False).raw
    kind = next(kind for kind, name in _KINDS.items() if name == group)
    scaling = text.section("rope_scaling", required=False).raw if group == _FULL else {}
    if isinstance(nested.get(kind), Mapping):
        scaling = nested[kind]
    theta = text.number("rope_theta", default=1e6) if group == _FULL else text.number("rope_local_base_freq", default=1e4)
    section = ConfigReader({"rope_theta": theta, **scaling}, f"rope of {kind}")
    frequencies = read_frequencies(text, config.heads.head_dim, device, scaling=section)
    return Rope(frequencies.values, magnitude=frequencies.magnitude)


def _block(config: GemmaConfig, weights: WeightReader, prefix: str, group: str) -> Block:
    heads, attention, hidden = config.heads, f"{prefix}.self_attn", config.hidden
    width, kv_width = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    mixer = GroupedQueryAttention(
        group=group,
        rope=group,
        heads=heads,
        scale=config.scale,
        window_tokens=config.window if group == _SLIDING else None,
        kernels=weights.kernels,
        qkv=read_linear(weights, [f"{attention}.{x}_proj" for x in "qkv"], [width, kv_width, kv_width], hidden),
        out=read_linear(weights, [f"{attention}.o_proj"], [hidden], width),
        q_norm=_norm(config, weights, f"{attention}.q_norm", heads.head_dim),
        k_norm=_norm(config, weights, f"{attention}.k_norm", heads.head_dim),
    )
    return Block(
        mixer_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
        mixer=mixer,
        mixer_post_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
        ffn_norm=_norm(config, weights, f"{prefix}.pre_feedforward_layernorm"),
        ffn=read_mlp(weights, f"{prefix}.mlp", hidden, config.inner, Activation.GELU_TANH),
        ffn_post_norm=_norm(config, weights, f"{prefix}.post_feedforward_layernorm"),
    )


def _norm(config: GemmaConfig, weights: WeightReader, name: str, width: int | None = None) -> RmsNorm:
    """Stored as the difference from one."""
    return read_norm(weights, name, width or config.hidden, config.eps, centred=True)


def _ignorable(raw: RawConfig, name: str) -> bool:
    """Vision parts; a head that repeats the embedding."""
    config = parse(raw)
    outside = bool(config.prefix) and not name.startswith(config.prefix)
    return outside or (config.tied and name == f"{config.prefix}lm_head.weight")


_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "ffn_norm.weight": "pre_feedforward_layernorm.weight",
    "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q_norm.weight": "self_attn.q_norm.weight",
    "attn_k_norm.weight": "self_attn.k_norm.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def _gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"gemma3.{key}", default)

    return {
        "architectures": ["Gemma3ForCausalLM"],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"),
        "query_pre_attn_scalar": value("attention.key_length"),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": value("context_length"),
        "sliding_window": value("attention.sliding_window"),
        "rope_theta": value("rope.freq_base", 1e6),
    }


def _restore(name: str, tensor: torch.Tensor, _config: RawConfig) -> torch.Tensor:
    """GGUF's converter adds the one to every norm weight."""
    return tensor - 1.0 if "norm" in name else tensor


FAMILY = Family(
    name="gemma3",
    architectures=("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    outline=outline,
    build=build,
    ignorable=_ignorable,
    gguf=(GgufDialect("gemma3", _gguf_config, _GGUF_NAMES, _restore),),
)
