"""Linear attention layers with a delta rule: what Kimi Delta Attention and gated DeltaNet have in common.

A layer projects its input; this module convolves, normalises, runs the recurrence over the paged states, and returns
the per-head outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from prfaas.model.api import LayerCache
from prfaas.model.kernels.conv import convolve_chunk, convolve_step
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun, Kernels
from prfaas.model.step import StateAccess, StateSpan

_L2_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """Key heads (queries have as many), value heads (a multiple), and channels of each."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: all queries, all keys, all values, in this order."""
        return 2 * self.num_key_heads * self.key_dim + self.num_value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class DeltaInputs:
    """Projections of a step's rows: qkv [T, conv_dim] before the convolution; decay (log) [T, Hv, dk or 1] and beta
    [T, Hv], float32."""

    qkv: torch.Tensor
    decay: torch.Tensor
    beta: torch.Tensor


@dataclass(frozen=True, slots=True)
class DeltaCore:
    """Cache tensors "recurrent" [Hv, dk, dv] float32 and "conv" [K-1, conv_dim]. conv_weight: [K, conv_dim]."""

    shape: DeltaShape
    conv_weight: torch.Tensor
    kernels: Kernels

    def __call__(self, inputs: DeltaInputs, access: StateAccess, cache: LayerCache) -> torch.Tensor:
        """Advance the states and return [T, Hv, dv] float32."""
        rows = inputs.qkv.shape[0]
        if access.decode_slots.shape[0] == rows:
            return self._decode(inputs, access, cache)
        mixed = inputs.decay.new_empty(rows, self.shape.num_value_heads, self.shape.value_dim)
        if access.decode_slots.shape[0]:
            chosen = access.decode_rows
            alone = DeltaInputs(inputs.qkv[chosen], inputs.decay[chosen], inputs.beta[chosen])
            mixed[chosen] = self._decode(alone, access, cache)
        for span in access.prefills:
            mixed[span.start : span.stop] = self._prefill(inputs, span, cache)
        return mixed

    def _decode(self, inputs: DeltaInputs, access: StateAccess, cache: LayerCache) -> torch.Tensor:
        history = cache["conv"][access.decode_slots]
        if access.decode_fresh:
            fresh = list(access.decode_fresh)
            history[fresh] = 0
            cache["recurrent"].index_fill_(0, access.decode_slots[fresh], 0)
        mixed, history = convolve_step(inputs.qkv, history, self.conv_weight)
        cache["conv"].index_copy_(0, access.decode_slots, history.to(cache["conv"].dtype))
        rows = DeltaRows(*self._heads(mixed), inputs.decay, inputs.beta)
        return self.kernels.delta_each(rows, cache["recurrent"], access.decode_slots)

    def _prefill(self, inputs: DeltaInputs, span: StateSpan, cache: LayerCache) -> torch.Tensor:
        rows = slice(span.start, span.stop)
        history = cache["conv"][span.slot]
        if span.fresh:
            history.zero_()
            cache["recurrent"][span.slot].zero_()
        mixed, last = convolve_chunk(inputs.qkv[rows], history, self.conv_weight)
        history.copy_(last)
        chunk = DeltaRows(*self._heads(mixed), inputs.decay[rows], inputs.beta[rows])
        return self.kernels.delta(chunk, cache["recurrent"], [DeltaRun(span.slot, 0, rows.stop - rows.start)])

    def _heads(self, mixed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Split convolved rows [n, conv_dim] into float32 heads; queries and keys have unit length, queries are scaled
        by dk^-0.5, and key heads are repeated for the value heads that share them."""
        shape = self.shape
        key_width = shape.num_key_heads * shape.key_dim
        wide = mixed.float()
        both = torch.unflatten(wide[:, : 2 * key_width], 1, (2 * shape.num_key_heads, shape.key_dim))
        both = both * torch.rsqrt(both.square().sum(dim=-1, keepdim=True) + _L2_EPS)
        query, key = both.chunk(2, dim=1)
        value = torch.unflatten(wide[:, 2 * key_width :], 1, (shape.num_value_heads, shape.value_dim))
        repeats = shape.num_value_heads // shape.num_key_heads
        if repeats > 1:
            query, key = (x.repeat_interleave(repeats, dim=1) for x in (query, key))
        return query * shape.key_dim**-0.5, key, value
