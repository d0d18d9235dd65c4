"""Configurations of the generated models: the published keys, sizes that a laptop prefills in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prfaas.model.tiny.tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE

_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "dtype": "bfloat16",
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": PAD_ID,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "use_cache": True,
}

LLAMA: Mapping[str, Any] = {
    **_COMMON,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 65536,
    "attention_bias": False,
    "mlp_bias": False,
}

KIMI_LINEAR: Mapping[str, Any] = {
    **_COMMON,
    "architectures": ["KimiLinearForCausalLM"],
    "model_type": "kimi_linear",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5,
    "model_max_length": 65536,
    "head_dim": 32,
    "q_lora_rank": None,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "mla_use_nope": True,
    "num_experts": 8,
    "num_experts_per_token": 2,
    "num_shared_experts": 1,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "moe_router_activation_func": "sigmoid",
    "moe_renormalize": True,
    "routed_scaling_factor": 1.5,
    "use_grouped_topk": True,
    "num_expert_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "linear_attn_config": {
        "full_attn_layers": [3, 6],
        "kda_layers": [1, 2, 4, 5],
        "head_dim": 32,
        "num_heads": 4,
        "short_conv_kernel_size": 4,
    },
}
