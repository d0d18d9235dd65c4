"""Llama and its near relatives: pre-norm blocks of grouped-query attention and a gated feed-forward.

Mistral without a window and Qwen2 (biases on q, k, v) differ from Llama by configuration only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prfaas.model.config_reader import ConfigReader
from prfaas.model.family import Family, GgufDialect, Outline, RawConfig
from prfaas.model.layers.gqa import GroupedQueryAttention, HeadShape
from prfaas.model.layers.linear import read_head, read_linear
from prfaas.model.layers.mlp import read_mlp
from prfaas.model.layers.norm import RmsNorm, read_norm
from prfaas.model.layers.rope import Rope, read_frequencies
from prfaas.model.network import Block, DecoderNetwork
from prfaas.model.weights import WeightReader
from prfaas.modelspec import CacheGroup, DType, GroupKind, ModelSpec, TensorSpec

_GROUP = "full"


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """The fields that the network needs. `qkv_bias`: q, k and v have biases; `out_bias`: o has one."""

    vocab_size: int
    hidden: int
    inner: int
    num_layers: int
    heads: HeadShape
    eps: float
    max_context_tokens: int
    tied: bool
    qkv_bias: bool
    out_bias: bool


def parse(raw: RawConfig) -> LlamaConfig:
    """Read a configuration. Raises ModelLoadError for a missing key or a variant that is not computed."""
    config = ConfigReader(raw)
    config.require_equal("hidden_act", ["silu"], "silu")
    config.require_equal("use_sliding_window", [False], False)
    config.require_equal("mlp_bias", [False], False)
    if not config.has("use_sliding_window"):
        config.require_equal("sliding_window", [None], None)
    hidden, num_heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    qwen = "Qwen2ForCausalLM" in config.texts("architectures")
    bias = config.boolean("attention_bias", default=qwen)
    return LlamaConfig(
        vocab_size=config.integer("vocab_size"),
        hidden=hidden,
        inner=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers"),
        heads=HeadShape(
            num_heads,
            config.integer("num_key_value_heads", default=num_heads),
            config.integer("head_dim", default=hidden // num_heads),
        ),
        eps=config.number("rms_norm_eps", default=1e-6),
        max_context_tokens=config.integer("max_position_embeddings"),
        tied=config.boolean("tie_word_embeddings", default=False),
        qkv_bias=bias,
        out_bias=bias and not qwen,
    )


def outline(raw: RawConfig, dtype: DType) -> Outline:
    """One FULL group with "k" and "v" [Hkv, d] for every layer."""
    config = parse(raw)
    entry = (config.heads.num_kv_heads, config.heads.head_dim)
    tensors = (TensorSpec("k", entry, dtype), TensorSpec("v", entry, dtype))
    group = CacheGroup(_GROUP, GroupKind.FULL, tuple(range(config.num_layers)), tensors)
    return Outline(config.vocab_size, config.num_layers, config.max_context_tokens, (group,))


def build(raw: RawConfig, spec: ModelSpec, weights: WeightReader) -> DecoderNetwork:
    """Read all weights, q, k, v and gate, up fused."""
    config = parse(raw)
    frequencies = read_frequencies(ConfigReader(raw), config.heads.head_dim, weights.device)
    embedding = weights.take("model.embed_tokens.weight", (config.vocab_size, config.hidden))
    return DecoderNetwork(
        spec=spec,
        device=weights.device,
        dtype=weights.dtype,
        embedding=embedding,
        blocks=tuple(_block(config, weights, f"model.layers.{i}") for i in range(config.num_layers)),
        norm=_norm(config, weights, "model.norm"),
        head=read_head(weights, "lm_head", embedding, tied=config.tied),
        ropes={"rope": Rope(frequencies.values, magnitude=frequencies.magnitude)},
    )


def _block(config: LlamaConfig, weights: WeightReader, prefix: str) -> Block:
    heads, attention = config.heads, f"{prefix}.self_attn"
    width, kv_width = heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim
    mixer = GroupedQueryAttention(
        group=_GROUP,
        rope="rope",
        heads=heads,
        scale=heads.head_dim**-0.5,
        window_tokens=None,
        kernels=weights.kernels,
        qkv=read_linear(
            weights,
            [f"{attention}.{x}_proj" for x in "qkv"],
            [width, kv_width, kv_width],
            config.hidden,
            bias=config.qkv_bias,
        ),
        out=read_linear(weights, [f"{attention}.o_proj"], [config.hidden], width, bias=config.out_bias),
    )
    return Block(
        mixer_norm=_norm(config, weights, f"{prefix}.input_layernorm"),
        mixer=mixer,
        ffn_norm=_norm(config, weights, f"{prefix}.post_attention_layernorm"),
        ffn=read_mlp(weights, f"{prefix}.mlp", config.hidden, config.inner),
    )


def _norm(config: LlamaConfig, weights: WeightReader, name: str) -> RmsNorm:
    return read_norm(weights, name, config.hidden, config.eps)


def _ignorable(raw: RawConfig, name: str) -> bool:
    """Old checkpoints store rope frequencies; tied ones may repeat the embedding as the head."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and parse(raw).tied)


_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}


def _gguf_config(prefix: str, architecture: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"{prefix}.{key}", default)

    config = {
        "architectures": [architecture],
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "num_hidden_layers": value("block_count"),
        "num_attention_heads": value("attention.head_count"),
        "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length", value("rope.dimension_count")),
        "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": value("context_length"),
        "rope_theta": value("rope.freq_base", 10000.0),
    }
    if value("rope.scaling.type", "none") != "none":
        config["rope_scaling"] = {
            "rope_type": value("rope.scaling.type"),
            "factor": value("rope.scaling.factor"),
            "original_max_position_embeddings": value("rope.scaling.original_context_length"),
        }
    return config


def _unpermute(name: str, tensor: torch.Tensor, config: RawConfig) -> torch.Tensor:
    """GGUF's llama converter reorders q and k rows for interleaved rope; put them back in half-split order."""
    if ".self_attn.q_proj." not in name and ".self_attn.k_proj." not in name:
        return tensor
    return torch.unflatten(tensor, 0, (-1, _head_rows(config) // 2, 2)).transpose(1, 2).flatten(0, 2)


def _head_rows(config: RawConfig) -> int:
    return int(config["head_dim"] or config["hidden_size"] // config["num_attention_heads"])


FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM"),
    outline=outline,
    build=build,
    ignorable=_ignorable,
    gguf=(
        GgufDialect("llama", lambda m: _gguf_config("llama", "LlamaForCausalLM", m), _GGUF_NAMES, _unpermute, _head_rows),
        GgufDialect("qwen2", lambda m: _gguf_config("qwen2", "Qwen2ForCausalLM", m), _GGUF_NAMES, lambda _n, t, _c: t),
    ),
)
