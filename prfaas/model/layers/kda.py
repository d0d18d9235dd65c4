"""Kimi Delta Attention ("Kimi Linear", arXiv:2510.26692, section 3): a delta rule with a forget gate per channel."""

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
class ForgetGate:
    """Log decay per head and channel from f_a, f_b, a rate per head and a bias per channel.

    rate: exp(A_log), [H, 1] float32. bias: dt_bias, [H * dk] float32. Without a lower bound the log decay is
    -rate * softplus(a + bias); with one it is lower_bound * sigmoid(rate * (a + bias)).
    """

    down: Linear
    up: Linear
    rate: torch.Tensor
    bias: torch.Tensor
    lower_bound: float | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden] to float32 [T, H, dk], all values <= 0."""
        raw = torch.unflatten(self.up(self.down(x)).float() + self.bias, 1, (self.rate.shape[0], -1))
        if self.lower_bound is None:
            return F.softplus(raw) * -self.rate
        return torch.sigmoid(raw * self.rate) * self.lower_bound


@dataclass(frozen=True, slots=True)
class KimiDeltaAttention:
    """State group `group`. qkv_beta: rows q, k, v and then one beta row per head. gate: one or two products in a row."""

    group: str
    core: DeltaCore
    qkv_beta: Linear
    forget: ForgetGate
    gate: tuple[Linear, ...]
    norm: GatedRmsNorm
    out: Linear

    def __call__(self, x: torch.Tensor, step: StepContext, cache: LayerCache) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]."""
        shape = self.core.shape
        qkv, beta = self.qkv_beta(x).split_with_sizes((shape.conv_dim, shape.num_value_heads), dim=-1)
        inputs = DeltaInputs(qkv, self.forget(x), beta.float().sigmoid())
        mixed = self.core(inputs, step.states[self.group], cache)
        gate = x
        for product in self.gate:
            gate = product(gate)
        return self.out(self.norm(mixed, gate.view(mixed.shape)).flatten(1))
