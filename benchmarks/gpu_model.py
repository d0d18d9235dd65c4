"""A network of a published shape with random weights that are made on the device, and what its products cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.load import build_network, describe_checkpoint
from prfaas.model.network import DecoderNetwork
from prfaas.model.tiny.configs import KIMI_LINEAR
from prfaas.model.tiny.layouts import LAYOUTS

# moonshotai/Kimi-Linear-48B-A3B-Instruct where it differs from the generated model of the same architecture.
KIMI_LINEAR_48B: Mapping[str, Any] = {
    **KIMI_LINEAR,
    "vocab_size": 163840,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "model_max_length": 1048576,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "moe_intermediate_size": 1024,
    "routed_scaling_factor": 2.446,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 17, 18, 19, 21, 22, 23, 25, 26],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
}
_EXPERT = re.compile(r"\.experts\.\d+\.")


def with_layers(config: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The first layers only, for devices that the whole does not fit on."""
    linear = config["linear_attn_config"]
    kept = {key: [n for n in linear[key] if n <= num_layers] for key in ("full_attn_layers", "kda_layers")}
    return {**config, "num_hidden_layers": num_layers, "linear_attn_config": {**linear, **kept}}


class RandomCheckpoint:
    """Implements `Checkpoint`: tensors drawn when they are asked for, in bfloat16, never all at once."""

    def __init__(self, config: Mapping[str, Any], device: torch.device, seed: int) -> None:
        self.config = config
        self._shapes = dict(LAYOUTS[config["architectures"][0]](config))
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return (int(self.config["eos_token_id"]),)

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return self._shapes

    def tensor(self, name: str) -> torch.Tensor:
        shape, leaf = self._shapes[name], name.removesuffix(".weight").rpartition(".")[2]
        if "norm" in leaf:
            return torch.ones(shape, dtype=torch.bfloat16, device=self._device)
        noise = torch.randn(shape, generator=self._generator, device=self._device, dtype=torch.bfloat16)
        return noise if len(shape) == 1 or leaf == "A_log" else noise * (1.4 * shape[-1] ** -0.5)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        yield self.tensor(name)

    def weights_identity(self) -> str:
        return "random"

    def tokenizer_identity(self) -> str:
        return "none"


def build(
    config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device, kernels: Kernels, block_tokens: int, seed: int
) -> DecoderNetwork:
    """A network of this shape on the device."""
    checkpoint = RandomCheckpoint(config, device, seed)
    spec = describe_checkpoint(checkpoint, "random", block_tokens, dtype)
    return build_network(checkpoint, spec, dtype=dtype, device=device, kernels=kernels)


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations of a prompt: `weights` per token in products with weights (an expert counts by how often
    it is chosen, the head not at all: it runs for one token), `pairs` per pair of positions, `states` per token."""

    weights: float
    pairs: float
    states: float

    def prefill_flop(self, num_tokens: int) -> float:
        """Causal attention sees half of all pairs."""
        return num_tokens * (self.weights + self.states) + self.pairs * num_tokens**2 / 2


def work_of(config: Mapping[str, Any]) -> Work:
    """Of a Kimi-Linear configuration. The delta rule: decay, recall, update and output of each state, 7 operations per
    entry and token; the chunked form does more, which counts as overhead."""
    share = config["num_experts_per_token"] / config["num_experts"]
    skipped = ("model.embed_tokens.weight", "lm_head.weight")
    weights = sum(
        2.0 * math.prod(shape) * (share if _EXPERT.search(name) else 1.0)
        for name, shape in LAYOUTS[config["architectures"][0]](config)
        if len(shape) == 2 and name not in skipped
    )
    linear = config["linear_attn_config"]
    width = config["qk_nope_head_dim"] + config["qk_rope_head_dim"] + config["v_head_dim"]
    pairs = 2.0 * len(linear["full_attn_layers"]) * config["num_attention_heads"] * width
    states = 7.0 * len(linear["kda_layers"]) * linear["num_heads"] * linear["head_dim"] ** 2
    return Work(weights, pairs, states)
