"""The gated delta rule by the Triton kernels of the optional package fla-core (extra `cuda`).

Only the mapping of arguments is ours: one token axis, our state layout [slots, H, dk, dv], float32 states and decays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun

Outputs = tuple[torch.Tensor, torch.Tensor]
Op = Callable[..., Outputs]  # (o, final state)


@dataclass(frozen=True, slots=True)
class DeltaOps:
    """The package's functions. chunk_kda, chunk_gdn: runs of tokens, a decay per channel or per head; both take q, k, v, g,
    beta [1, T, H, ...], scale, initial_state [N, H, dk, dv], output_final_state and cu_seqlens. recurrent: one token for each
    of N sequences, on states in place: initial_state is the whole pool, ssm_state_indices says which N of it."""

    chunk_kda: Op
    chunk_gdn: Op
    recurrent: Op


def open_delta_ops() -> DeltaOps | None:
    """None where the package, or Triton below it, cannot be imported."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
        from fla.ops.kda import chunk_kda
        from fla.ops.kda.fused_recurrent import fused_recurrent_kda_fwd
    except ImportError:
        return None
    return DeltaOps(chunk_kda, chunk_gated_delta_rule, fused_recurrent_kda_fwd)


@dataclass(frozen=True, slots=True)
class FusedDelta:
    """`Kernels.delta` and `Kernels.delta_each`. Products are in `dtype`, sums and states in float32."""

    ops: DeltaOps
    dtype: torch.dtype

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        """All runs in one call."""
        slots = [run.slot for run in runs]
        bounds = None
        if len(runs) > 1:
            bounds = torch.tensor([runs[0].start, *(run.stop for run in runs)], dtype=torch.int64, device=states.device)
        per_head = rows.decay.shape[-1] == 1
        decay = rows.decay.squeeze(-1) if per_head else rows.decay
        out, after = (self.ops.chunk_gdn if per_head else self.ops.chunk_kda)(
            *self._products(rows),
            g=decay.unsqueeze(0),
            beta=rows.beta.unsqueeze(0),
            scale=1.0,
            initial_state=states[slots],
            output_final_state=True,
            cu_seqlens=bounds,
        )
        for slot, state in zip(slots, after, strict=True):
            states[slot].copy_(state)
        return out[0].float()

    def delta_each(self, rows: DeltaRows, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """A row for each slot; the states are read and written where they lie."""
        count = slots.shape[0]
        out, _ = self.ops.recurrent(
            *self._products(rows),
            g=rows.decay.expand(-1, -1, rows.key.shape[-1]).contiguous().unsqueeze(0),
            beta=rows.beta.unsqueeze(0),
            scale=1.0,
            initial_state=states,
            inplace_final_state=True,
            cu_seqlens=torch.arange(count + 1, dtype=torch.int64, device=states.device),
            ssm_state_indices=slots,
            out=torch.zeros_like(rows.value).unsqueeze(0),
        )
        return out[0]

    def _products(self, rows: DeltaRows) -> tuple[torch.Tensor, ...]:
        """Queries (scaled by the caller), keys and values, with a batch axis."""
        return tuple(x.to(self.dtype).contiguous().unsqueeze(0) for x in (rows.query, rows.key, rows.value))
