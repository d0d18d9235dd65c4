"""Root-mean-square normalisation. Computed in float32 with float32 weights, returned in the input's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.weights import WeightReader


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """y = x / sqrt(mean(x^2) + eps) * weight over the last axis. weight: [d] float32."""

    weight: torch.Tensor
    eps: float
    kernels: Kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.rms_norm(x, self.weight, self.eps)

    def after(self, x: torch.Tensor, more: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x + more, and the norm of it. x, more: [T, d]."""
        return self.kernels.add_norm(x, more, self.weight, self.eps)


def read_norm(weights: WeightReader, name: str, width: int, eps: float, *, centred: bool = False) -> RmsNorm:
    """Read NAME.weight in float32; `centred` weights are stored as the difference from one."""
    weight = weights.take(f"{name}.weight", (width,), torch.float32)
    return RmsNorm(1.0 + weight if centred else weight, eps, weights.kernels)


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
