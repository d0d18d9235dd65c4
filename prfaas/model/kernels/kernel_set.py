"""The port for arithmetic that has more than one implementation, and the implementation in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from prfaas.model.kernels.attention import attend_decode
from prfaas.model.kernels.delta_rule import delta_chunks, delta_step
from prfaas.model.step import DecodeBatch


@dataclass(frozen=True, slots=True)
class DeltaRun:
    """Rows [start, stop) advance the state in `slot`."""

    slot: int
    start: int
    stop: int


class Kernels(Protocol):
    """Implementations agree up to rounding. None keeps references to its arguments."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [..., in], weight: [out, in], bias: [out] to [..., out]."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x: [..., d], weight: float32 [d]; computed in float32, returned in x's dtype."""
        ...

    def silu_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        """[T, 2d] to silu(first half) * second half, [T, d]."""
        ...

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        """Decode rows over a paged cache. query: [N, Hq, d]; keys, values: [num_blocks, block_tokens, Hkv, d or dv].
        Returns [N, Hq, dv]."""
        ...

    def delta(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        states: torch.Tensor,
        runs: Sequence[DeltaRun],
    ) -> torch.Tensor:
        """The gated delta rule, see `kernels.delta_rule`. query, key: [T, H, dk]; value: [T, H, dv]; decay: log decay
        [T, H, dk or 1]; beta: [T, H]; states: [num_slots, H, dk, dv], updated in place; all float32. `runs` tile the
        rows. Returns [T, H, dv]."""
        ...


@dataclass(frozen=True, slots=True)
class TorchKernels:
    """Works on every device and dtype."""

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def silu_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up

    def attend(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: DecodeBatch, scale: float
    ) -> torch.Tensor:
        return attend_decode(query, batch.read(keys), batch.read(values), batch.bias, scale)

    def delta(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        decay: torch.Tensor,
        beta: torch.Tensor,
        states: torch.Tensor,
        runs: Sequence[DeltaRun],
    ) -> torch.Tensor:
        if all(run.stop - run.start == 1 for run in runs):
            slots = torch.tensor([run.slot for run in runs], device=states.device)
            picked = states[slots]
            out = delta_step(query, key, value, decay, beta, picked)
            states.index_copy_(0, slots, picked)
            return out
        parts = []
        for run in runs:
            rows = slice(run.start, run.stop)
            parts.append(delta_chunks(query[rows], key[rows], value[rows], decay[rows], beta[rows], states[run.slot]))
        return torch.cat(parts) if len(parts) > 1 else parts[0]
