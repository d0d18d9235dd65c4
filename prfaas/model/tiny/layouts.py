"""The tensors that published checkpoints of each architecture hold: names and shapes from a configuration.

Written down independently of the loader, so that a loader which asks for a wrong name or shape fails on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Shaped = tuple[str, tuple[int, ...]]


def _ends(config: Config, prefix: str = "") -> Iterator[Shaped]:
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    yield f"{prefix}model.embed_tokens.weight", (vocab, hidden)
    yield f"{prefix}model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield f"{prefix}lm_head.weight", (vocab, hidden)


def _gated_mlp(prefix: str, hidden: int, inner: int, names: tuple[str, str, str]) -> Iterator[Shaped]:
    gate, up, down = names
    yield f"{prefix}.{gate}.weight", (inner, hidden)
    yield f"{prefix}.{up}.weight", (inner, hidden)
    yield f"{prefix}.{down}.weight", (hidden, inner)


_PROJ = ("gate_proj", "up_proj", "down_proj")


def llama(config: Config) -> Iterator[Shaped]:
    """LlamaForCausalLM."""
    yield from _ends(config)
    hidden, dim = config["hidden_size"], config["head_dim"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (config["num_attention_heads"] * dim, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (config["num_key_value_heads"] * dim, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (config["num_key_value_heads"] * dim, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, config["num_attention_heads"] * dim)
        yield from _gated_mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], _PROJ)


def kimi_linear(config: Config) -> Iterator[Shaped]:
    """KimiLinearForCausalLM, names of moonshotai/Kimi-Linear-48B-A3B-Instruct."""
    yield from _ends(config)
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if layer + 1 in config["linear_attn_config"]["full_attn_layers"]:
            yield from _latent_attention(f"{prefix}.self_attn", config)
        else:
            yield from _kimi_delta(f"{prefix}.self_attn", config)
        if layer < config["first_k_dense_replace"]:
            yield from _gated_mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], _PROJ)
            continue
        moe, inner = f"{prefix}.block_sparse_moe", config["moe_intermediate_size"]
        yield f"{moe}.gate.weight", (config["num_experts"], hidden)
        yield f"{moe}.gate.e_score_correction_bias", (config["num_experts"],)
        for expert in range(config["num_experts"]):
            yield from _gated_mlp(f"{moe}.experts.{expert}", hidden, inner, ("w1", "w3", "w2"))
        yield from _gated_mlp(f"{moe}.shared_experts", hidden, inner * config["num_shared_experts"], _PROJ)


def _kimi_delta(prefix: str, config: Config) -> Iterator[Shaped]:
    hidden, linear = config["hidden_size"], config["linear_attn_config"]
    heads, dim, taps = linear["num_heads"], linear["head_dim"], linear["short_conv_kernel_size"]
    for name in "qkv":
        yield f"{prefix}.{name}_proj.weight", (heads * dim, hidden)
        yield f"{prefix}.{name}_conv1d.weight", (heads * dim, 1, taps)
    yield f"{prefix}.A_log", (1, 1, heads, 1)
    yield f"{prefix}.dt_bias", (heads * dim,)
    yield f"{prefix}.b_proj.weight", (heads, hidden)
    for name in "fg":
        yield f"{prefix}.{name}_a_proj.weight", (dim, hidden)
        yield f"{prefix}.{name}_b_proj.weight", (heads * dim, dim)
    yield f"{prefix}.o_norm.weight", (dim,)
    yield f"{prefix}.o_proj.weight", (hidden, heads * dim)


def _latent_attention(prefix: str, config: Config) -> Iterator[Shaped]:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    query_rank = config.get("q_lora_rank")
    if query_rank is None:
        yield f"{prefix}.q_proj.weight", (heads * (nope + rope), hidden)
    else:
        yield f"{prefix}.q_a_proj.weight", (query_rank, hidden)
        yield f"{prefix}.q_a_layernorm.weight", (query_rank,)
        yield f"{prefix}.q_b_proj.weight", (heads * (nope + rope), query_rank)
    yield f"{prefix}.kv_a_proj_with_mqa.weight", (rank + rope, hidden)
    yield f"{prefix}.kv_a_layernorm.weight", (rank,)
    yield f"{prefix}.kv_b_proj.weight", (heads * (nope + value), rank)
    yield f"{prefix}.o_proj.weight", (hidden, heads * value)


def deepseek_v3(config: Config) -> Iterator[Shaped]:
    """DeepseekV3ForCausalLM, names of deepseek-ai/DeepSeek-V3 and moonshotai/Kimi-K2."""
    yield from _ends(config)
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield from _latent_attention(f"{prefix}.self_attn", config)
        if layer < config["first_k_dense_replace"]:
            yield from _gated_mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], _PROJ)
            continue
        inner = config["moe_intermediate_size"]
        yield f"{prefix}.mlp.gate.weight", (config["n_routed_experts"], hidden)
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (config["n_routed_experts"],)
        for expert in range(config["n_routed_experts"]):
            yield from _gated_mlp(f"{prefix}.mlp.experts.{expert}", hidden, inner, _PROJ)
        yield from _gated_mlp(f"{prefix}.mlp.shared_experts", hidden, inner * config["n_shared_experts"], _PROJ)


def qwen3_next(config: Config) -> Iterator[Shaped]:
    """Qwen3NextForCausalLM, names of Qwen/Qwen3-Next-80B-A3B-Instruct."""
    yield from _ends(config)
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        if (layer + 1) % config["full_attention_interval"]:
            yield from _gated_delta(f"{prefix}.linear_attn", config)
        else:
            yield from _normed_attention(f"{prefix}.self_attn", config, query_parts=2)
        inner = config["moe_intermediate_size"]
        yield f"{prefix}.mlp.gate.weight", (config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            yield from _gated_mlp(f"{prefix}.mlp.experts.{expert}", hidden, inner, _PROJ)
        yield from _gated_mlp(f"{prefix}.mlp.shared_expert", hidden, config["shared_expert_intermediate_size"], _PROJ)
        yield f"{prefix}.mlp.shared_expert_gate.weight", (1, hidden)


def gemma3(config: Config) -> Iterator[Shaped]:
    """Gemma3ForCausalLM, names of google/gemma-3-270m."""
    yield from _ends(config)
    hidden = config["hidden_size"]
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{prefix}.{norm}_layernorm.weight", (hidden,)
        yield from _normed_attention(f"{prefix}.self_attn", config, query_parts=1)
        yield from _gated_mlp(f"{prefix}.mlp", hidden, config["intermediate_size"], _PROJ)


def _normed_attention(prefix: str, config: Config, query_parts: int) -> Iterator[Shaped]:
    hidden, dim = config["hidden_size"], config["head_dim"]
    yield f"{prefix}.q_proj.weight", (query_parts * config["num_attention_heads"] * dim, hidden)
    yield f"{prefix}.k_proj.weight", (config["num_key_value_heads"] * dim, hidden)
    yield f"{prefix}.v_proj.weight", (config["num_key_value_heads"] * dim, hidden)
    yield f"{prefix}.o_proj.weight", (hidden, config["num_attention_heads"] * dim)
    yield f"{prefix}.q_norm.weight", (dim,)
    yield f"{prefix}.k_norm.weight", (dim,)


def _gated_delta(prefix: str, config: Config) -> Iterator[Shaped]:
    hidden, taps = config["hidden_size"], config["linear_conv_kernel_dim"]
    values = config["linear_num_value_heads"]
    key_width = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    value_width = values * config["linear_value_head_dim"]
    yield f"{prefix}.in_proj_qkvz.weight", (2 * key_width + 2 * value_width, hidden)
    yield f"{prefix}.in_proj_ba.weight", (2 * values, hidden)
    yield f"{prefix}.conv1d.weight", (2 * key_width + value_width, 1, taps)
    yield f"{prefix}.A_log", (values,)
    yield f"{prefix}.dt_bias", (values,)
    yield f"{prefix}.norm.weight", (config["linear_value_head_dim"],)
    yield f"{prefix}.out_proj.weight", (hidden, value_width)


LAYOUTS: Mapping[str, Callable[[Config], Iterator[Shaped]]] = {
    "LlamaForCausalLM": llama,
    "KimiLinearForCausalLM": kimi_linear,
    "DeepseekV3ForCausalLM": deepseek_v3,
    "Qwen3NextForCausalLM": qwen3_next,
    "Gemma3ForCausalLM": gemma3,
}
