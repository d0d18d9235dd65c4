"""Mixture of experts: scoring and choosing, and the weights of those that are chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from prfaas.model.kernels.dequantize import expand_int4
from prfaas.model.kernels.experts import run_experts
from prfaas.model.kernels.kernel_set import Kernels


@dataclass(frozen=True, slots=True)
class Choice:
    """Experts of each token: ids int64 [T, k] and weights float32 [T, k]."""

    ids: torch.Tensor
    weights: torch.Tensor


class Router(Protocol):
    """Chooses experts for tokens [T, hidden]."""

    def __call__(self, x: torch.Tensor) -> Choice: ...


class Experts(Protocol):
    """All routed experts of a layer."""

    def __call__(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        """The weighted sum of each token's experts, [T, hidden] to [T, hidden]."""
        ...


@dataclass(frozen=True, slots=True)
class SigmoidRouter:
    """DeepSeek-V3's router (arXiv:2412.19437, section 2.1.2): experts are chosen by sigmoid score plus a bias within
    the best groups; the bias does not enter the weights.

    weight: [E, hidden] float32; bias: [E] float32.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    top_k: int
    num_groups: int
    top_groups: int
    normalise: bool
    scaling: float

    def __call__(self, x: torch.Tensor) -> Choice:
        scores = F.linear(x.float(), self.weight).sigmoid()
        biased = scores + self.bias
        if self.top_groups < self.num_groups:
            grouped = torch.unflatten(biased, -1, (self.num_groups, -1))
            group_scores = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(dim=-1)
            kept = group_scores.topk(self.top_groups, dim=-1, sorted=False).indices
            closed = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, kept, False)
            biased = grouped.masked_fill(closed.unsqueeze(-1), -torch.inf).flatten(-2)
        ids = biased.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(-1, ids)
        if self.normalise:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return Choice(ids, weights * self.scaling)


@dataclass(frozen=True, slots=True)
class SoftmaxRouter:
    """The best of a softmax over all experts, optionally renormalised over the chosen ones. weight: [E, hidden]."""

    weight: torch.Tensor
    top_k: int
    normalise: bool

    def __call__(self, x: torch.Tensor) -> Choice:
        weights, ids = torch.softmax(F.linear(x, self.weight).float(), dim=-1).topk(self.top_k, dim=-1)
        if self.normalise:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Choice(ids, weights)


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """A shared expert whose output a single sigmoid gate weighs per token."""

    gate: Callable[[torch.Tensor], torch.Tensor]
    inner: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(x).sigmoid() * self.inner(x)


@dataclass(frozen=True, slots=True)
class DenseExperts:
    """gate_up: [E, 2 * inner, hidden], gate rows first; down: [E, hidden, inner]. SiLU gate."""

    gate_up: torch.Tensor
    down: torch.Tensor
    kernels: Kernels

    def __call__(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        return self.kernels.experts(x, choice.ids, choice.weights, self.gate_up, self.down)


@dataclass(frozen=True, slots=True)
class PackedExpert:
    """One expert in 4 bits: packed int32 [out, in / 8] and scale [out, in / group]; gate rows before up rows."""

    gate_up: torch.Tensor
    gate_up_scale: torch.Tensor
    down: torch.Tensor
    down_scale: torch.Tensor


@dataclass(frozen=True, slots=True)
class PackedExperts:
    """Experts that stay in 4 bits in memory; the one that runs is expanded for the time of its product."""

    experts: tuple[PackedExpert, ...]
    kernels: Kernels

    def __call__(self, x: torch.Tensor, choice: Choice) -> torch.Tensor:
        return run_experts(x, choice.ids, choice.weights, self._run)

    def _run(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        one = self.experts[expert]
        gate_up = expand_int4(one.gate_up, one.gate_up_scale, x.dtype)
        return self.kernels.gated_mlp(x, gate_up, expand_int4(one.down, one.down_scale, x.dtype))


@dataclass(frozen=True, slots=True)
class MixtureOfExperts:
    """y = sum of weighted experts + shared(x)."""

    router: Router
    experts: Experts
    shared: Callable[[torch.Tensor], torch.Tensor] | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]."""
        mixed = self.experts(x, self.router(x))
        return mixed if self.shared is None else mixed + self.shared(x)
