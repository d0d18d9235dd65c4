"""Takes weights out of a checkpoint one by one: checks shapes, converts, places on the device, keeps account.

What is left over at the end is a sign that checkpoint and network do not belong together, so it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.checkpoint import Checkpoint


class WeightReader:
    """Hands each tensor of a checkpoint to the network that is being built."""

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device) -> None:
        self._checkpoint = checkpoint
        self._shapes = dict(checkpoint.shapes())
        self._left = set(self._shapes)
        self.dtype = dtype
        self.device = device

    def has(self, name: str) -> bool:
        return name in self._shapes

    def first_of(self, names: Sequence[str]) -> str:
        """The first of several spellings that exists. Raises ModelLoadError when none does."""
        for name in names:
            if name in self._shapes:
                return name
        raise ModelLoadError(f"the checkpoint has no tensor {' or '.join(names)}", tensor=names[0])

    def stored(self, name: str) -> torch.Tensor:
        """The tensor as stored, for formats that are unpacked by the caller."""
        if name not in self._shapes:
            raise ModelLoadError(f"the checkpoint has no tensor {name}", tensor=name)
        self._left.discard(name)
        return self._checkpoint.tensor(name)

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor in `dtype` (default: the compute dtype) on the device, viewed as `shape`.

        A stored shape that differs only by axes of length one is accepted. Raises ModelLoadError otherwise.
        """
        tensor = self.stored(name)
        if _squeezed(tensor.shape) != _squeezed(shape):
            raise ModelLoadError(
                f"tensor {name} has shape {tuple(tensor.shape)}, the configuration asks for {tuple(shape)}", tensor=name
            )
        return tensor.to(device=self.device, dtype=self.dtype if dtype is None else dtype).reshape(tuple(shape))

    def take_rows(self, names: Sequence[str], num_rows: Sequence[int], num_columns: int) -> torch.Tensor:
        """Several [rows, columns] matrices stacked into one, so that one product computes all of them."""
        if len(names) == 1:
            return self.take(names[0], (num_rows[0], num_columns))
        fused = torch.empty(sum(num_rows), num_columns, dtype=self.dtype, device=self.device)
        start = 0
        for name, rows in zip(names, num_rows, strict=True):
            fused[start : start + rows].copy_(self.take(name, (rows, num_columns)))
            start += rows
        return fused

    def require_all_taken(self, ignorable: Callable[[str], bool]) -> None:
        """Raise ModelLoadError when a tensor that is not ignorable was not used."""
        left = sorted(name for name in self._left if not ignorable(name))
        if left:
            raise ModelLoadError(
                f"{len(left)} tensors of the checkpoint have no place in this network, first {left[:3]}", unused=len(left)
            )


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [extent for extent in shape if extent != 1]
