"""Takes weights out of a checkpoint one by one: checks shapes, converts, places on the device, keeps account.

Quantised weights are recognised by the names beside them and expanded as they are taken, unless the caller asks for
the packed form. What is left over at the end is a sign that checkpoint and network do not belong together, so it is an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from prfaas.errors import ModelLoadError
from prfaas.model.checkpoint import Checkpoint
from prfaas.model.kernels.dequantize import expand_fp8_blocks, expand_int4
from prfaas.model.kernels.kernel_set import Kernels
from prfaas.model.quantization import PACKED, SCALE, SCALE_INV, SHAPE, Quantization

_SLICE_VALUES = 1 << 20  # quantised values that are expanded at a time


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """packed: int32 [out, in / 8]; scale: [out, in / group]."""

    packed: torch.Tensor
    scale: torch.Tensor


class WeightReader:
    """Hands each tensor of a checkpoint to the network that is being built."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        quantization: Quantization,
        kernels: Kernels,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._checkpoint = checkpoint
        self._quantization = quantization
        self.kernels = kernels
        self._shapes = dict(checkpoint.shapes())
        self._left = set(self._shapes)
        self.dtype = dtype
        self.device = device

    def has(self, name: str) -> bool:
        return name in self._shapes or self.is_packed(name)

    def is_packed(self, name: str) -> bool:
        """Whether a weight is stored as 4-bit values; take it with `take_packed` to keep it so."""
        return f"{name}{PACKED}" in self._shapes

    def first_of(self, names: Sequence[str]) -> str:
        """The first of several spellings that exists. Raises ModelLoadError when none does."""
        for name in names:
            if self.has(name):
                return name
        raise ModelLoadError(f"the checkpoint has no tensor {' or '.join(names)}", tensor=names[0])

    def take_packed(self, name: str, shape: tuple[int, int]) -> PackedWeight:
        """A 4-bit weight of logical `shape` without expanding it. Raises ModelLoadError when the shapes disagree."""
        packed, scale = self._stored(f"{name}{PACKED}"), self._stored(f"{name}{SCALE}")
        stated = tuple(self._stored(f"{name}{SHAPE}").tolist()) if f"{name}{SHAPE}" in self._shapes else shape
        group, rest = divmod(shape[1], scale.shape[-1])
        if stated != shape or tuple(packed.shape) != (shape[0], -(-shape[1] // 8)) or rest or scale.shape[0] != shape[0]:
            raise ModelLoadError(f"packed tensor {name} has shape {stated}, the configuration asks for {shape}", tensor=name)
        if group % 8:
            raise ModelLoadError(f"packed tensor {name} has groups of {group} values, not a multiple of 8", tensor=name)
        return PackedWeight(packed.to(self.device), scale.to(self.device))

    def _stored(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            raise ModelLoadError(f"the checkpoint has no tensor {name}", tensor=name)
        self._left.discard(name)
        return self._checkpoint.tensor(name)

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor in `dtype` (default: the compute dtype) on the device, viewed as `shape`.

        A plain tensor of that dtype stays a mapping of its file where the device is the CPU. A stored shape that differs
        only by axes of length one is accepted. Raises ModelLoadError otherwise.
        """
        wanted = self.dtype if dtype is None else dtype
        pieces = self._pieces(name, shape, wanted)
        first = next(pieces)
        if first.numel() == math.prod(shape) and first.dtype is wanted and first.device == self.device:
            return first.reshape(tuple(shape))
        out = torch.empty(tuple(shape), dtype=wanted, device=self.device)
        _write(chain((first,), pieces), out)
        return out

    def fill(self, name: str, out: torch.Tensor) -> None:
        """Write the tensor into `out`, which has its shape, slice by slice: no second copy exists. Raises as `take`."""
        _write(self._pieces(name, out.shape, out.dtype), out)

    def _pieces(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Consecutive slices along the first axis: quantised ones expanded to `dtype`, others as they are stored."""
        if self.is_packed(name):
            words = self.take_packed(name, (shape[0], shape[1]))
            step = max(1, _SLICE_VALUES // shape[1])
            for packed, scale in zip(torch.split(words.packed, step), torch.split(words.scale, step), strict=True):
                yield expand_int4(packed, scale, dtype)
            return
        self._require(name, shape)
        if f"{name}{SCALE_INV}" not in self._shapes:
            yield from self._checkpoint.pieces(name)
            return
        weight, scale = self._stored(name).to(self.device), self._stored(f"{name}{SCALE_INV}").to(self.device)
        rows = self._quantization.fp8_block[0]
        blocks = max(1, _SLICE_VALUES // (rows * shape[1]))
        for part, factors in zip(torch.split(weight, blocks * rows), torch.split(scale, blocks), strict=True):
            yield expand_fp8_blocks(part, factors, self._quantization.fp8_block, dtype)

    def _require(self, name: str, shape: Sequence[int]) -> None:
        """Mark a plain tensor as used. Raises ModelLoadError when it does not exist or has another shape."""
        stored = self._shapes.get(name)
        if stored is None:
            raise ModelLoadError(f"the checkpoint has no tensor {name}", tensor=name)
        if _squeezed(stored) != _squeezed(shape):
            raise ModelLoadError(
                f"tensor {name} has shape {tuple(stored)}, the configuration asks for {tuple(shape)}", tensor=name
            )
        self._left.discard(name)

    def take_rows(self, names: Sequence[str], num_rows: Sequence[int], num_columns: int) -> torch.Tensor:
        """Several [rows, columns] matrices stacked into one, so that one product computes all of them."""
        if len(names) == 1:
            return self.take(names[0], (num_rows[0], num_columns))
        fused = torch.empty(sum(num_rows), num_columns, dtype=self.dtype, device=self.device)
        for name, part in zip(names, torch.split(fused, list(num_rows)), strict=True):
            self.fill(name, part)
        return fused

    def require_all_taken(self, ignorable: Callable[[str], bool]) -> None:
        """Raise ModelLoadError when a tensor that is not ignorable was not used."""
        left = sorted(name for name in self._left if not ignorable(name))
        if left:
            raise ModelLoadError(
                f"{len(left)} tensors of the checkpoint have no place in this network, first {left[:3]}", unused=len(left)
            )


def _write(pieces: Iterable[torch.Tensor], out: torch.Tensor) -> None:
    start = 0
    for piece in pieces:
        target = out if piece.numel() == out.numel() else out[start : start + len(piece)]
        target.copy_(piece.reshape(target.shape))
        start += len(piece)


def _squeezed(shape: Sequence[int]) -> list[int]:
    return [extent for extent in shape if extent != 1]
