"""Gated DeltaNet (arXiv:2412.06464) as in Qwen3-Next: a delta rule with one forget gate per value head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prfaas.model.api import LayerCache
from prfaas.model.layers.delta import DeltaCore, DeltaInputs
from prfaas.model.layers.linear import Linear
from prfaas.model.layers.norm import GatedRmsNorm
from prfaas.model.step import StepContext


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """State group `group`. project: rows q, k, v, then the output gate [Hv * dv], then beta [Hv], then decay [Hv].

    rate: exp(A_log), bias: dt_bias, both [Hv] float32; the log decay is -rate * softplus(a + bias).
    """

    group: str
    core: DeltaCore
    project: Linear
    rate: torch.Tensor
    bias: torch.Tensor
    norm: GatedRmsNorm
    out: Linear

    def __call__(self, x: torch.Tensor, step: StepContext, cache: LayerCache) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]."""
        shape = self.core.shape
        heads = shape.num_value_heads
        qkv, gate, beta, raw = self.project(x).split_with_sizes((shape.conv_dim, heads * shape.value_dim, heads, heads), dim=-1)
        decay = (F.softplus(raw.float() + self.bias) * -self.rate).unsqueeze(-1)
        mixed = self.core(DeltaInputs(qkv, decay, beta.float().sigmoid()), step.states[self.group], cache)
        return self.out(self.norm(mixed, gate.reshape(mixed.shape)).flatten(1))
