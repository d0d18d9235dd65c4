"""Randomly initialised transformers models, saved and read back: logits and caches, for shapes the generated models lack.

Head counts are odd where the architecture permits, key and value widths differ, experts come in groups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.model_oracle import fed_in_pieces, load_ours, load_reference, random_tokens, reference_run
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch

TOLERANCE = 1e-4
CUTS = [1, 2, 33, 66, 130, *range(143, 150)]

COMMON: Mapping[str, Any] = {
    "vocab_size": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.08,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
K2_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 50000.0,
    "factor": 64.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 64,
}
KIMI = {
    "hidden_size": 60,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "kv_lora_rank": 40,
    "qk_rope_head_dim": 12,
    "qk_nope_head_dim": 20,
    "v_head_dim": 28,
    "num_experts": 12,
    "num_experts_per_token": 3,
    "num_expert_group": 3,
    "topk_group": 2,
    "linear_attn_config": {
        "full_attn_layers": [2, 4],
        "kda_layers": [1, 3],
        "head_dim": 24,
        "num_heads": 3,
        "short_conv_kernel_size": 4,
    },
}
DEEPSEEK = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 4096,
    "num_nextn_predict_layers": 0,
}

QWEN_HYBRID = {
    "hidden_size": 60,
    "intermediate_size": 72,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 24,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 20,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"],
    "max_position_embeddings": 512,
}
QWEN_MOE = {
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 20,
}

CASES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama-llama3-rope": (
        "LlamaConfig",
        {
            "hidden_size": 72,
            "intermediate_size": 72,
            "num_hidden_layers": 3,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 20,
            "rope_parameters": LLAMA3_ROPE,
            "tie_word_embeddings": True,
            "max_position_embeddings": 512,
        },
    ),
    "qwen2": (
        "Qwen2Config",
        {
            "hidden_size": 56,
            "intermediate_size": 72,
            "num_hidden_layers": 2,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "max_position_embeddings": 512,
        },
    ),
    "kimi-linear": ("KimiLinearConfig", KIMI),
    "deepseek-v3": ("DeepseekV3Config", DEEPSEEK),
    "kimi-k2": (
        "DeepseekV3Config",
        {**DEEPSEEK, "rope_parameters": K2_ROPE, "n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5},
    ),
    "deepseek-v3-direct-queries": ("DeepseekV3Config", {**DEEPSEEK, "q_lora_rank": None, "rope_interleave": False}),
    "qwen3-next": ("Qwen3NextConfig", {**QWEN_HYBRID, **QWEN_MOE, "mlp_only_layers": [1]}),
    "qwen3-5": ("Qwen3_5TextConfig", QWEN_HYBRID),
    "qwen3-5-moe": ("Qwen3_5MoeTextConfig", {**QWEN_HYBRID, **QWEN_MOE}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "hidden_size": 60,
            "intermediate_size": 72,
            "num_hidden_layers": 7,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 20,
            "query_pre_attn_scalar": 24,
            "sliding_window": 37,
            "sliding_window_pattern": 3,
            "max_position_embeddings": 512,
        },
    ),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a case to the directory transformers saved it in."""
    written: dict[str, Path] = {}

    def save(name: str) -> Path:
        if name not in written:
            kind, fields = CASES[name]
            torch.manual_seed(len(name))
            model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**COMMON, **fields))
            with torch.no_grad():
                for key, value in model.named_parameters():  # away from the ones and zeros of the default initialisation
                    if "norm" in key or key.endswith("bias"):
                        value.add_(torch.randn_like(value) * 0.1)
                for key, value in model.named_buffers():
                    if key.endswith("e_score_correction_bias"):
                        value.add_(torch.randn_like(value) * 0.1)
            written[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(written[name])
        return written[name]

    return save


@pytest.mark.parametrize("name", CASES)
def test_logits_and_caches_equal_transformers(name: str, saved: Callable[[str], Path]) -> None:
    network, reference = load_ours(saved(name)), load_reference(saved(name))
    tokens = random_tokens(150, network.spec.vocab_size)
    wanted = reference_run(reference, tokens)
    assert wanted.logits.std() > 0.1

    runner = PagedRunner(network)
    whole = runner.run((runner.start(), tokens))
    assert (whole - wanted.logits).abs().max() < TOLERANCE

    split, runner, sequence = fed_in_pieces(network, tokens, CUTS)
    assert (split - wanted.logits).abs().max() < TOLERANCE
    for group in network.spec.cache.groups:
        for layer in group.layers:
            _compare_cache(runner, sequence, group.name, layer, wanted.cache.layers[layer])


def _compare_cache(runner: PagedRunner, sequence: Any, group: str, layer: int, theirs: Any) -> None:
    """Ours against transformers' cache layer, in its own layouts."""
    names = {t.name for t in runner.model.spec.cache.group(group).tensors}
    ours = {name: runner.entries(sequence, group, layer, name) for name in names}
    if names == {"latent"}:
        pairs = [(ours["latent"], torch.cat((theirs.keys[0, 0], theirs.values[0, 0]), dim=-1))]
    elif names == {"recurrent", "conv"}:
        columns = theirs.conv_states[0][0].t()[-ours["conv"].shape[0] :]
        pairs = [(ours["recurrent"], theirs.recurrent_states[0][0]), (ours["conv"], columns)]
    else:
        pairs = [(ours["k"], theirs.keys[0].transpose(0, 1)), (ours["v"], theirs.values[0].transpose(0, 1))]
    for mine, wanted in pairs:
        kept = mine[-wanted.shape[0] :]  # a sliding cache of theirs holds the window only
        assert kept.shape == wanted.shape
        assert (kept - wanted).abs().max() < TOLERANCE
