"""Running the chosen experts of a step's tokens: sorted by expert, every expert that was hit once."""

from __future__ import annotations

from collections.abc import Callable

import torch


def run_experts(
    x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, run: Callable[[int, torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Sum of each token's weighted experts. x: [T, hidden]; ids: int64 [T, k]; weights: float32 [T, k]; `run` takes an
    expert's number and the tokens [n, hidden] that chose it. Returns [T, hidden]. Weights are never gathered per token."""
    top_k = ids.shape[1]
    order = ids.flatten().argsort(stable=True)
    rows = order // top_k
    scales = weights.flatten()[order].unsqueeze(-1).to(x.dtype)
    mixed = torch.zeros_like(x)
    start = 0
    for expert, count in enumerate(torch.bincount(ids.flatten()).tolist()):
        if count:
            mine = rows[start : start + count]
            mixed.index_add_(0, mine, run(expert, x[mine]) * scales[start : start + count])
            start += count
    return mixed
