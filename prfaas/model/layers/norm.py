"""Root-mean-square normalisation. Computed in float32 with float32 weights, returned in the input's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis. weight: [d] float32."""

    weight: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps).to(x.dtype)


@dataclass(frozen=True, slots=True)
class GatedRmsNorm:
    """RmsNorm per head times an activated gate: sigmoid (Kimi Delta Attention) or SiLU (Qwen gated DeltaNet)."""

    weight: torch.Tensor
    eps: float
    silu: bool

    def __call__(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """x: float32 [..., d]; gate: [..., d]. Returns the gate's dtype."""
        normed = F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = gate.float()
        return (normed * (F.silu(wide) if self.silu else wide.sigmoid())).to(gate.dtype)
