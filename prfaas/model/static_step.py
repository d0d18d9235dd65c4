"""The inputs of a recorded decode step: memory that stays, for a number of rows and a length of block tables.

A step of fewer rows is filled up with rows that belong to nobody: they read and write the last block and the last slot
of each cache tensor, which no sequence owns. All numbers travel to the device in one copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from prfaas.model.api import LayerCache, Segment, StepInput
from prfaas.model.layers.rope import Rope
from prfaas.model.step import DecodeBatch, PagedAccess, StateAccess, StepContext
from prfaas.modelspec import CacheGroup, CacheSpec

_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Steps of at most `rows` rows whose sequences have at most `blocks` blocks."""

    rows: int
    blocks: int


@dataclass(frozen=True, slots=True)
class _Places:
    """Views of one group's numbers. PAGED: write [rows], spans [rows, 2], blocks [rows, width]; STATE: write [rows]."""

    write: torch.Tensor
    spans: torch.Tensor
    blocks: torch.Tensor


class StaticStep:
    """Not thread-safe. The step before must be over on the device when the next is loaded."""

    def __init__(self, bucket: Bucket, spec: CacheSpec, cache: Sequence[LayerCache], device: torch.device) -> None:
        self._bucket, self._spec, self._device = bucket, spec, device
        self._scratch = {g.name: cache[g.layers[0]][g.tensors[0].name].shape[0] - 1 for g in spec.groups}
        rows = bucket.rows
        shapes = {g.name: ((rows,), (rows, 2), (rows, self._width(g))) for g in spec.groups}
        sizes = [math.prod(shape) for three in shapes.values() for shape in three]
        host = torch.empty(2 * rows + sum(sizes), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._host, self._numbers = host, torch.empty_like(host, device=device)
        self._rows = torch.arange(rows, device=device)
        self._mine, self._its = self._views(host, shapes), self._views(self._numbers, shapes)
        self._fill_up(0)
        self._send()

    def _width(self, group: CacheGroup) -> int:
        """Blocks that a row reads at most: of a window's length, however it is aligned."""
        if group.is_state:
            return 0
        window = group.window_tokens
        return self._bucket.blocks if window is None else -(-(window - 1) // self._spec.block_tokens) + 1

    def _views(self, numbers: torch.Tensor, shapes: Mapping[str, Sequence[tuple[int, ...]]]) -> Mapping[str, _Places]:
        at = 2 * self._bucket.rows
        found = {}
        for name, three in shapes.items():
            parts = []
            for shape in three:
                parts.append(numbers[at : at + math.prod(shape)].view(shape))
                at += math.prod(shape)
            found[name] = _Places(*parts)
        return found

    def load(self, step: StepInput) -> None:
        """Take in a step of decodes: one row for each segment."""
        count = len(step.segments)
        context = np.array([segment.context_tokens for segment in step.segments], dtype=np.int64)
        for group in self._spec.groups:
            if group.is_state:
                self._mine[group.name].write[:count] = step.state_slots[group.name]
            else:
                self._load_paged(group, step.block_tables[group.name].cpu().numpy(), context)
        self._fill_up(count)
        self._send()
        rows = self._bucket.rows
        self._numbers[:count].copy_(step.tokens, non_blocking=True)
        self._numbers[rows : rows + count].copy_(step.positions, non_blocking=True)

    def _load_paged(self, group: CacheGroup, table: npt.NDArray[np.int32], context: _Numbers) -> None:
        size, count, mine = self._spec.block_tokens, len(context), self._mine[group.name]
        seen_from = np.array([group.first_needed_token(int(each)) for each in context], dtype=np.int64)
        first, last = seen_from // size, context // size
        rows = np.arange(count)[:, None]
        index = first[:, None] + np.arange(mine.blocks.shape[1])
        blocks = np.where(index <= last[:, None], table[rows, np.minimum(index, table.shape[1] - 1)], 0)
        mine.blocks.numpy()[:count] = blocks
        mine.spans.numpy()[:count] = np.stack((seen_from, context + 1), axis=1) - first[:, None] * size
        mine.write.numpy()[:count] = table[rows[:, 0], last].astype(np.int64) * size + context % size

    def _fill_up(self, count: int) -> None:
        """Rows from `count` on: token 0 at position 0 of a sequence that lies in the scratch block."""
        rows = self._bucket.rows
        self._host[count:rows] = 0
        self._host[rows + count : 2 * rows] = 0
        for group in self._spec.groups:
            mine, scratch = self._mine[group.name], self._scratch[group.name]
            mine.write[count:] = scratch if group.is_state else scratch * self._spec.block_tokens
            if not group.is_state:
                mine.blocks[count:] = scratch
                mine.spans[count:] = torch.tensor([0, 1])

    def _send(self) -> None:
        self._numbers.copy_(self._host, non_blocking=True)

    @property
    def tokens(self) -> torch.Tensor:
        """int64 [rows] on the device."""
        return self._numbers[: self._bucket.rows]

    def context(self, ropes: Mapping[str, Rope], dtype: torch.dtype) -> StepContext:
        """The plan of the loaded step, worked out on the device: part of what is recorded."""
        rows = self._bucket.rows
        rotations = {name: rope.rotation(self._numbers[rows : 2 * rows], dtype) for name, rope in ropes.items()}
        paged = {g.name: self._access(g, dtype) for g in self._spec.groups if not g.is_state}
        states = {
            g.name: StateAccess(self._rows, self._its[g.name].write, decode_fresh=(), prefills=())
            for g in self._spec.groups
            if g.is_state
        }
        return StepContext(rows, all_decode=True, rotations=rotations, paged=paged, states=states)

    def _access(self, group: CacheGroup, dtype: torch.dtype) -> PagedAccess:
        its, rows = self._its[group.name], self._bucket.rows
        entries = torch.arange(its.blocks.shape[1] * self._spec.block_tokens, device=self._device)
        hidden = (entries < its.spans[:, :1]) | (entries >= its.spans[:, 1:])
        bias = torch.zeros(hidden.shape, dtype=dtype, device=self._device).masked_fill_(hidden, -torch.inf)
        access = PagedAccess(
            segments=[Segment(row, 1, 1) for row in range(rows)],
            group=group,
            block_tokens=self._spec.block_tokens,
            dtype=dtype,
            write_slots=its.write,
            write_rows=None,
            table=its.blocks,
            runs=torch.stack((self._rows, torch.ones_like(self._rows), its.spans[:, 1] - 1), dim=1),
        )
        # What the property would ask the host to work out from table and segments, already planned.
        vars(access)["decodes"] = (DecodeBatch(self._rows, its.blocks, spans=(), bias=bias[:, None, None], run=None),)
        return access
