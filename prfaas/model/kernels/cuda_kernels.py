"""The arithmetic on an accelerator: torch's, but for the delta rule and the experts of a step.

Nothing here asks the device for a number, so that a decode step can be recorded and replayed. Runs on a CPU too, more slowly
than the kernels made for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from prfaas.model.kernels.cuda_delta import FusedDelta
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun, PagedAttention, Recorded
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.step import PagedAccess

_ALIGNMENT = 16  # bytes that grouped products want rows to start at


class CudaKernels:
    """Implements `Kernels`. `fused` runs the delta rule where there is one."""

    def __init__(self, fused: FusedDelta | None) -> None:
        self._torch = TorchKernels()
        self._delta: FusedDelta | TorchKernels = fused or self._torch

    def record(self, work: Callable[[], torch.Tensor]) -> Recorded:
        return self._torch.record(work)

    def settle(self, weight: torch.Tensor) -> None:
        self._torch.settle(weight)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._torch.linear(x, weight, bias)

    def logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self._torch.logits(x, weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self._torch.rms_norm(x, weight, eps)

    def add_norm(
        self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._torch.add_norm(x, more, weight, eps)

    def gated_mlp(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        return self._torch.gated_mlp(x, gate_up, down)

    def experts(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        """Two grouped products over the tokens in the order of their experts.

        Each is one kernel in bfloat16 from Hopper on. Elsewhere torch looks at the groups' sizes and loops over them, and
        the step cannot be recorded.
        """
        if any(weight.shape[-1] * weight.element_size() % _ALIGNMENT for weight in (gate_up, down)):
            return self._torch.experts(x, ids, weights, gate_up, down)
        top_k, num_experts = ids.shape[1], gate_up.shape[0]
        chosen = ids.flatten()
        order = chosen.argsort(stable=True)
        counts = torch.zeros(num_experts, dtype=torch.int64, device=x.device).scatter_add_(0, chosen, torch.ones_like(chosen))
        ends = counts.cumsum(0).to(torch.int32)
        gate, up = F.grouped_mm(x[order // top_k], gate_up.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        fed = F.grouped_mm(F.silu(gate) * up, down.transpose(1, 2), offs=ends)
        by_token = torch.empty_like(fed).index_copy_(0, order, fed).view(*ids.shape, -1)
        return torch.bmm(weights.to(x.dtype).unsqueeze(1), by_token).squeeze(1)

    def store(self, fresh: torch.Tensor, paged: torch.Tensor, access: PagedAccess) -> None:
        self._torch.store(fresh, paged, access)

    def attend(self, call: PagedAttention) -> torch.Tensor:
        return self._torch.attend(call)

    def attend_latent(
        self, query: torch.Tensor, latents: torch.Tensor, access: PagedAccess, scale: float, value_width: int
    ) -> torch.Tensor:
        return self._torch.attend_latent(query, latents, access, scale, value_width)

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        return self._delta.delta(rows, states, runs)

    def delta_each(self, rows: DeltaRows, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return self._delta.delta_each(rows, states, slots)
