"""Grouped-query attention over a paged cache: full or sliding, with optional query/key norms, biases and output gate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prfaas.model.api import LayerCache
from prfaas.model.kernels.kernel_set import Kernels, PagedAttention
from prfaas.model.layers.linear import Linear
from prfaas.model.layers.norm import RmsNorm
from prfaas.model.step import StepContext


@dataclass(frozen=True, slots=True)
class HeadShape:
    """Query heads, key/value heads and channels of one head."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class GroupedQueryAttention:
    """Cache tensors "k" and "v" [Hkv, d] of cache group `group`; keys are cached after norm and rotation.

    qkv: rows q (with a gate of the same width after each head's query when `gated`), then k, then v.
    """

    group: str
    rope: str
    heads: HeadShape
    scale: float
    window_tokens: int | None
    kernels: Kernels
    qkv: Linear
    out: Linear
    q_norm: RmsNorm | None = None
    k_norm: RmsNorm | None = None
    gated: bool = False

    def __call__(self, x: torch.Tensor, step: StepContext, cache: LayerCache) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]."""
        query, key, value, gate = self._project(x)
        access = step.paged[self.group]
        rotation = step.rotations[self.rope]
        call = PagedAttention(query, key, value, rotation, cache["k"], cache["v"], access, self.scale, self.window_tokens)
        mixed = self.kernels.attend(call).flatten(1)
        return self.out(mixed if gate is None else mixed * gate.sigmoid())

    def _project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Queries [T, Hq, d], keys and values [T, Hkv, d], and the gate [T, Hq * d] where there is one."""
        shape, gate = self.heads, None
        kv_heads = shape.num_kv_heads
        parts = (shape.num_heads * (2 if self.gated else 1), kv_heads, kv_heads)
        query, key, value = self.qkv(x).view(x.shape[0], -1, shape.head_dim).split_with_sizes(parts, dim=1)
        if self.gated:
            query, opening = torch.unflatten(query, 1, (shape.num_heads, 2)).unbind(2)
            gate = opening.flatten(1)
        if self.q_norm is not None:
            query = self.q_norm(query)
        if self.k_norm is not None:
            key = self.k_norm(key)
        return query, key, value, gate
