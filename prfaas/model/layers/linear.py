"""Matrix products with stored weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.weights import WeightReader


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + b. weight: [out, in]; x: [..., in]."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    kernels: Kernels

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.kernels.linear(x, self.weight, self.bias)

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The same in float32. x: [T, in]."""
        return self.kernels.logits(x, self.weight, self.bias)


def read_linear(
    weights: WeightReader, names: Sequence[str], num_rows: Sequence[int], num_columns: int, *, bias: bool = False
) -> Linear:
    """Read `NAME.weight` (and `NAME.bias`) for each name and stack them: outputs appear side by side in order."""
    weight = weights.take_rows([f"{name}.weight" for name in names], num_rows, num_columns)
    weights.kernels.settle(weight)
    if not bias:
        return Linear(weight, None, weights.kernels)
    parts = [weights.take(f"{name}.bias", (rows,)) for name, rows in zip(names, num_rows, strict=True)]
    return Linear(weight, torch.cat(parts), weights.kernels)


def read_head(weights: WeightReader, name: str, embedding: torch.Tensor, *, tied: bool) -> Linear:
    """The output head: NAME.weight with the shape of the embedding [vocab, hidden], or the embedding itself."""
    if tied:
        weights.kernels.settle(embedding)
        return Linear(embedding, None, weights.kernels)
    return read_linear(weights, [name], [embedding.shape[0]], embedding.shape[1])
