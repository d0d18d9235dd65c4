"""The cache memory of an engine: paged tensors behind block and slot ids, and their canonical bytes.

For each group and tensor there is one allocation [layers, blocks, block_tokens, *shape] (STATE: [layers, slots,
*shape]) per tier; a layer's paged tensor is a view into it. On the device each has one block or slot more than there are
to hand out: the last belongs to no sequence, and rows that only fill up a step use it. Knows nothing of sequences,
hashes or who owns a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prfaas.engine.backend import PoolSize
from prfaas.engine.torch_device import Staging, borrow_bytes
from prfaas.engine.torch_pages import gather_tokens, scatter_tokens
from prfaas.modelspec import CacheGroup, DType, KvRange, ModelSpec
from prfaas.sched.plan import Copy

TORCH_DTYPES: Mapping[DType, torch.dtype] = {
    DType.F32: torch.float32,
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
}

_ALIGNMENT = 64  # bytes of a cache line


@dataclass(frozen=True, slots=True)
class _GroupPages:
    """One group's tensors, in the order of `group.tensors`, for each tier."""

    group: CacheGroup
    device: tuple[torch.Tensor, ...]
    host: tuple[torch.Tensor, ...]

    def tier(self, name: str) -> tuple[torch.Tensor, ...]:
        if name == "device":
            return self.device
        if name == "host":
            return self.host
        raise ValueError(f"there is no cache tier {name!r}")


class TorchStore:
    """Allocates every pool once. Reading and writing may run on any thread, for blocks no running step touches."""

    def __init__(self, spec: ModelSpec, sizes: Mapping[str, PoolSize], device: torch.device, staging: Staging) -> None:
        self._block_tokens = spec.cache.block_tokens
        self._device = device
        self._staging = staging
        pinned = device.type == "cuda"
        self._pages = {
            group.name: _GroupPages(
                group,
                self._allocate(group, sizes[group.name].device + 1, device, pinned=False),
                self._allocate(group, sizes[group.name].host, torch.device("cpu"), pinned=pinned),
            )
            for group in spec.cache.groups
        }
        self.layers: tuple[Mapping[str, torch.Tensor], ...] = self._layer_views(spec)

    def _allocate(self, group: CacheGroup, count: int, device: torch.device, *, pinned: bool) -> tuple[torch.Tensor, ...]:
        unit = () if group.is_state else (self._block_tokens,)
        return tuple(
            _zeros((len(group.layers), count, *unit, *t.shape), TORCH_DTYPES[t.dtype], device, pinned=pinned)
            for t in group.tensors
        )

    def _layer_views(self, spec: ModelSpec) -> tuple[Mapping[str, torch.Tensor], ...]:
        views: list[dict[str, torch.Tensor]] = [{} for _ in range(spec.num_layers)]
        for pages in self._pages.values():
            for ordinal, layer in enumerate(pages.group.layers):
                for tensor, allocation in zip(pages.group.tensors, pages.device, strict=True):
                    views[layer][tensor.name] = allocation[ordinal]
        return tuple(views)

    @property
    def num_bytes(self) -> int:
        """Bytes allocated over all groups and tiers."""
        return sum(t.nbytes for pages in self._pages.values() for t in (*pages.device, *pages.host))

    def free(self) -> None:
        """Let go of all memory. Any later use is a KeyError."""
        self._pages.clear()
        self.layers = ()

    def copy(self, copies: Sequence[Copy]) -> None:
        """Run copies in order; each covers every layer and tensor of its group.

        Between tiers layer by layer: such a piece is contiguous on both ends, and only then does a device copy it to pinned
        memory without waiting.
        """
        for copy in copies:
            pages = self._pages[copy.group]
            for target, source in zip(pages.tier(copy.target_tier), pages.tier(copy.source_tier), strict=True):
                if copy.target_tier == copy.source_tier:
                    target[:, copy.target].copy_(source[:, copy.source])
                    continue
                for into, out_of in zip(target.unbind(), source.unbind(), strict=True):
                    into[copy.target].copy_(out_of[copy.source], non_blocking=True)

    def read(self, wanted: KvRange, blocks: Sequence[int]) -> memoryview:
        """Canonical payload of a range in the resident dtypes, in memory of its own.

        `blocks` is the sequence's block table from its start, or the one slot of a state. Raises ValueError when the
        range does not lie in the group or touches an absent block.
        """
        pages = self._pages[wanted.group]
        group = pages.group
        self._check(wanted, group, blocks)
        with self._staging.stream():
            self._staging.wait_for_layers(group.layers[wanted.layer_start : wanted.layer_stop])
            buffer = torch.empty(wanted.num_bytes(group), dtype=torch.uint8, device=self._device)
            offset = 0
            for layer in range(wanted.layer_start, wanted.layer_stop):
                for tensor, allocation in zip(group.tensors, pages.device, strict=True):
                    num_bytes = tensor.num_bytes * wanted.num_entries(group)
                    self._read_one(allocation[layer], wanted, group, blocks, buffer[offset : offset + num_bytes])
                    offset += num_bytes
            return self._staging.to_host(buffer)

    def _read_one(
        self, paged: torch.Tensor, wanted: KvRange, group: CacheGroup, blocks: Sequence[int], out: torch.Tensor
    ) -> None:
        aligned = out.storage_offset() % paged.element_size() == 0
        shape = paged.shape[1:] if group.is_state else (wanted.num_entries(group), *paged.shape[2:])
        target = out.view(paged.dtype).view(shape) if aligned else paged.new_empty(shape)
        if group.is_state:
            target.copy_(paged[blocks[0]])
        else:
            gather_tokens(paged, blocks, wanted.token_start, wanted.token_stop, target)
        if not aligned:
            out.copy_(target.view(-1).view(torch.uint8))

    def write(self, landed: KvRange, blocks: Sequence[int], payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Inverse of `read`. `dtypes` has the payload's element type for each tensor of the group.

        Raises ValueError when the payload's length does not fit the range, a dtype has no plain conversion (F8 needs
        scales), or the range is wrong for the group.
        """
        pages = self._pages[landed.group]
        group = pages.group
        self._check(landed, group, blocks)
        sources = self._source_dtypes(group, dtypes)
        entries = landed.num_entries(group)
        sizes = [t.num_bytes // t.dtype.num_bytes * d.itemsize * entries for t, d in zip(group.tensors, sources, strict=True)]
        expected = sum(sizes) * (landed.layer_stop - landed.layer_start)
        if payload.nbytes != expected:
            raise ValueError(f"a payload for {landed} has {expected} bytes, not {payload.nbytes}")
        with self._staging.stream():
            data = self._staging.to_device(borrow_bytes(payload))
            offset = 0
            for layer in range(landed.layer_start, landed.layer_stop):
                for allocation, dtype, num_bytes in zip(pages.device, sources, sizes, strict=True):
                    piece = data[offset : offset + num_bytes]
                    self._write_one(allocation[layer], landed, group, blocks, _view_as(piece, dtype))
                    offset += num_bytes
            self._staging.finish()

    @staticmethod
    def _write_one(
        paged: torch.Tensor, landed: KvRange, group: CacheGroup, blocks: Sequence[int], source: torch.Tensor
    ) -> None:
        if group.is_state:
            slot = paged[blocks[0]]
            slot.copy_(source.view(slot.shape))
        else:
            entries = source.view(landed.num_entries(group), *paged.shape[2:])
            scatter_tokens(paged, blocks, landed.token_start, landed.token_stop, entries)

    @staticmethod
    def _source_dtypes(group: CacheGroup, dtypes: Sequence[DType]) -> list[torch.dtype]:
        if len(dtypes) != len(group.tensors):
            raise ValueError(f"the group {group.name!r} has {len(group.tensors)} tensors, not {len(dtypes)}")
        if DType.F8 in dtypes:
            raise ValueError("float8 entries need their scales; the wire codec has to decode them first")
        return [TORCH_DTYPES[d] for d in dtypes]

    def _check(self, wanted: KvRange, group: CacheGroup, blocks: Sequence[int]) -> None:
        if not 0 <= wanted.layer_start < wanted.layer_stop <= len(group.layers):
            raise ValueError(f"{wanted} is outside the {len(group.layers)} layers of {group.name!r}")
        if group.is_state:
            if len(blocks) != 1:
                raise ValueError(f"a state of {group.name!r} lies in one slot, not {len(blocks)}")
        elif not 0 <= wanted.token_start < wanted.token_stop <= len(blocks) * self._block_tokens:
            raise ValueError(f"{wanted} is outside a table of {len(blocks)} blocks of {self._block_tokens} tokens")


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, pinned: bool) -> torch.Tensor:
    """Zeroed, so that memory no one has written yet can never put a NaN into a masked product.

    Pageable host memory comes zeroed from the system and takes room only when it is first written.
    """
    if device.type != "cpu" or pinned:
        return torch.zeros(shape, dtype=dtype, device=device, pin_memory=pinned)
    num_bytes = math.prod(shape) * dtype.itemsize
    pages = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -pages.ctypes.data % _ALIGNMENT
    return torch.from_numpy(pages[start : start + num_bytes]).view(dtype).view(shape)


def _view_as(piece: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Reinterpret bytes; copies only when they do not start on an element boundary of the payload."""
    if piece.storage_offset() % dtype.itemsize:
        piece = piece.clone()
    return piece.view(dtype)
