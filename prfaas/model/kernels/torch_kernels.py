"""The arithmetic in plain torch, for every device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from prfaas.model.kernels.attention import attend_decode, attend_latent, attend_prefill
from prfaas.model.kernels.delta_rule import DeltaRows, delta_chunks, delta_step
from prfaas.model.kernels.experts import run_experts
from prfaas.model.kernels.kernel_set import DeltaRun, PagedAttention, Recorded
from prfaas.model.step import DecodeBatch, PagedAccess


@dataclass(frozen=True, slots=True)
class TorchKernels:
    """Implements `Kernels`."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recorded:
        return Recorded(work(), None)

    def settle(self, weight: torch.Tensor) -> None:
        pass

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias)

    def logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(x, weight, bias).float()

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)

    def add_norm(
        self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = x + more
        return total, self.rms_norm(total, weight, eps)

    def gated_mlp(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down)

    def experts(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        return run_experts(x, ids, weights, lambda expert, mine: self.gated_mlp(mine, gate_up[expert], down[expert]))

    def store(self, fresh: torch.Tensor, paged: torch.Tensor, access: PagedAccess) -> None:
        chosen = fresh if access.write_rows is None else fresh.index_select(0, access.write_rows)
        paged.flatten(0, 1).index_copy_(0, access.write_slots, chosen.to(paged.dtype))

    def attend(self, call: PagedAttention) -> torch.Tensor:
        query, key, access = call.rotation(call.query), call.rotation(call.key), call.access
        self.store(key, call.keys, access)
        self.store(call.value, call.values, access)
        if len(access.decodes) == 1 and not access.prefills:
            return _attend_batch(call, access.decodes[0], query)
        mixed = query.new_empty(*query.shape[:2], call.value.shape[-1])
        for batch in access.decodes:
            mixed[batch.rows] = _attend_batch(call, batch, query[batch.rows])
        for span in access.prefills:
            rows = slice(span.start, span.stop)
            past = span.read_past(call.keys), span.read_past(call.values)
            own = key[rows], call.value[rows]
            mixed[rows] = attend_prefill(query[rows], *own, *past, call.scale, call.window_tokens)
        return mixed

    def attend_latent(
        self, query: torch.Tensor, latents: torch.Tensor, access: PagedAccess, scale: float, value_width: int
    ) -> torch.Tensor:
        mixed = query.new_empty(*query.shape[:2], value_width)
        for batch in access.decodes:
            bias = None if batch.bias is None else batch.bias.squeeze(1)
            mixed[batch.rows] = attend_latent(query[batch.rows], batch.read(latents), bias, scale, value_width)
        return mixed

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        parts = [delta_chunks(rows.part(slice(run.start, run.stop)), states[run.slot]) for run in runs]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def delta_each(self, rows: DeltaRows, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        picked = states[slots]
        out = delta_step(rows, picked)
        states.index_copy_(0, slots, picked)
        return out


def _attend_batch(call: PagedAttention, batch: DecodeBatch, query: torch.Tensor) -> torch.Tensor:
    return attend_decode(query, batch.read(call.keys), batch.read(call.values), batch.bias, call.scale)
