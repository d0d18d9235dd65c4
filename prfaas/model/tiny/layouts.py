"""The tensors that published checkpoints of each architecture hold: names and shapes from a configuration.

Written down independently of the loader, so that a loader which asks for a wrong name or shape fails on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Shaped = tuple[str, tuple[int, ...]]


_PROJ = ("gate_proj", "up_proj", "down_proj")
_PRE_NORMS = ("input", "post_attention")

Layer = Callable[[str, Config, int], Iterator[Shaped]]  # tensors of one block, norms left out: prefix, config, number


def _decoder(config: Config, layer_of: Layer, norms: tuple[str, ...] = _PRE_NORMS) -> Iterator[Shaped]:
    """Embedding, blocks with their norms, final norm, and the head where it is not the embedding."""
    vocab, hidden = config["vocab_size"], config["hidden_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings", False):
        yield "lm_head.weight", (vocab, hidden)
    for number in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{number}"
        for norm in norms:
            yield f"{prefix}.{norm}_layernorm.weight", (hidden,)
        yield from layer_of(prefix, config, number)


def _gated_mlp(prefix: str, hidden: int, inner: int, names: tuple[str, str, str]) -> Iterator[Shaped]:
    gate, up, down = names
    yield f"{prefix}.{gate}.weight", (inner, hidden)
    yield f"{prefix}.{up}.weight", (inner, hidden)
    yield f"{prefix}.{down}.weight", (hidden, inner)


def _experts(prefix: str, config: Config, num_experts: int, names: tuple[str, str, str]) -> Iterator[Shaped]:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    yield f"{prefix}.gate.weight", (num_experts, hidden)
    for expert in range(num_experts):
        yield from _gated_mlp(f"{prefix}.experts.{expert}", hidden, inner, names)


def _sigmoid_experts(
    prefix: str, config: Config, num_experts: int, num_shared: int, names: tuple[str, str, str]
) -> Iterator[Shaped]:
    yield f"{prefix}.gate.e_score_correction_bias", (num_experts,)
    yield from _experts(prefix, config, num_experts, names)
    inner = config["moe_intermediate_size"] * num_shared
    yield from _gated_mlp(f"{prefix}.shared_experts", config["hidden_size"], inner, _PROJ)


def _dense(prefix: str, config: Config) -> Iterator[Shaped]:
    yield from _gated_mlp(f"{prefix}.mlp", config["hidden_size"], config["intermediate_size"], _PROJ)


def _attention(prefix: str, config: Config, query_parts: int = 1) -> Iterator[Shaped]:
    hidden, dim = config["hidden_size"], config["head_dim"]
    yield f"{prefix}.q_proj.weight", (query_parts * config["num_attention_heads"] * dim, hidden)
    yield f"{prefix}.k_proj.weight", (config["num_key_value_heads"] * dim, hidden)
    yield f"{prefix}.v_proj.weight", (config["num_key_value_heads"] * dim, hidden)
    yield f"{prefix}.o_proj.weight", (hidden, config["num_attention_heads"] * dim)


def _head_norms(prefix: str, config: Config) -> Iterator[Shaped]:
    for name in "qk":
        yield f"{prefix}.{name}_norm.weight", (config["head_dim"],)


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


def _llama_layer(prefix: str, config: Config, _number: int) -> Iterator[Shaped]:
    yield from _attention(f"{prefix}.self_attn", config)
    yield from _dense(prefix, config)


def _kimi_linear_layer(prefix: str, config: Config, number: int) -> Iterator[Shaped]:
    """Names of moonshotai/Kimi-Linear-48B-A3B-Instruct."""
    full = number + 1 in config["linear_attn_config"]["full_attn_layers"]
    yield from (_latent_attention if full else _kimi_delta)(f"{prefix}.self_attn", config)
    if number < config["first_k_dense_replace"]:
        yield from _dense(prefix, config)
        return
    experts, shared = config["num_experts"], config["num_shared_experts"]
    yield from _sigmoid_experts(f"{prefix}.block_sparse_moe", config, experts, shared, ("w1", "w3", "w2"))


def _deepseek_v3_layer(prefix: str, config: Config, number: int) -> Iterator[Shaped]:
    """Names of deepseek-ai/DeepSeek-V3 and moonshotai/Kimi-K2."""
    yield from _latent_attention(f"{prefix}.self_attn", config)
    if number < config["first_k_dense_replace"]:
        yield from _dense(prefix, config)
        return
    yield from _sigmoid_experts(f"{prefix}.mlp", config, config["n_routed_experts"], config["n_shared_experts"], _PROJ)


def _qwen3_next_layer(prefix: str, config: Config, number: int) -> Iterator[Shaped]:
    """Names of Qwen/Qwen3-Next-80B-A3B-Instruct."""
    if (number + 1) % config["full_attention_interval"]:
        yield from _gated_delta(f"{prefix}.linear_attn", config)
    else:
        yield from _attention(f"{prefix}.self_attn", config, query_parts=2)
        yield from _head_norms(f"{prefix}.self_attn", config)
    hidden, inner = config["hidden_size"], config["shared_expert_intermediate_size"]
    yield from _experts(f"{prefix}.mlp", config, config["num_experts"], _PROJ)
    yield from _gated_mlp(f"{prefix}.mlp.shared_expert", hidden, inner, _PROJ)
    yield f"{prefix}.mlp.shared_expert_gate.weight", (1, hidden)


def _gemma3_layer(prefix: str, config: Config, _number: int) -> Iterator[Shaped]:
    """Names of google/gemma-3-270m."""
    yield from _attention(f"{prefix}.self_attn", config)
    yield from _head_norms(f"{prefix}.self_attn", config)
    yield from _dense(prefix, config)


_GEMMA_NORMS = ("input", "post_attention", "pre_feedforward", "post_feedforward")

LAYOUTS: Mapping[str, Callable[[Config], Iterator[Shaped]]] = {
    "LlamaForCausalLM": lambda config: _decoder(config, _llama_layer),
    "KimiLinearForCausalLM": lambda config: _decoder(config, _kimi_linear_layer),
    "DeepseekV3ForCausalLM": lambda config: _decoder(config, _deepseek_v3_layer),
    "Qwen3NextForCausalLM": lambda config: _decoder(config, _qwen3_next_layer),
    "Gemma3ForCausalLM": lambda config: _decoder(config, _gemma3_layer, _GEMMA_NORMS),
}
