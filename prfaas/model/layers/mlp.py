"""The gated feed-forward block: down(act(gate(x)) * up(x))."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F

from prfaas.model.layers.linear import Linear, read_linear
from prfaas.model.weights import WeightReader


class Activation(StrEnum):
    """Gate activations, by their Hugging Face names."""

    SILU = "silu"
    GELU_TANH = "gelu_pytorch_tanh"


@dataclass(frozen=True, slots=True)
class GatedMlp:
    """gate_up: [2 * inner, hidden], gate rows first; down: [hidden, inner]."""

    gate_up: Linear
    down: Linear
    activation: Activation = Activation.SILU

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation is Activation.SILU:
            return self.gate_up.kernels.gated_mlp(x, self.gate_up.weight, self.down.weight)
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.gelu(gate, approximate="tanh") * up)


def read_mlp(weights: WeightReader, prefix: str, hidden: int, inner: int, activation: Activation = Activation.SILU) -> GatedMlp:
    """Read PREFIX.{gate,up,down}_proj."""
    return GatedMlp(
        read_linear(weights, [f"{prefix}.gate_proj", f"{prefix}.up_proj"], [inner, inner], hidden),
        read_linear(weights, [f"{prefix}.down_proj"], [hidden], inner),
        activation,
    )
