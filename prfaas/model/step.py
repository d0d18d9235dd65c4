"""A step's bookkeeping, computed once and shared by all layers: where rows are written and what each may read.

Rows that are alone in their segment (decodes) are batched; longer segments (prefill chunks) go one by one. Nothing
here knows what a cache entry means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from prfaas.model.api import Segment, StepInput
from prfaas.model.layers.rope import Rotation
from prfaas.modelspec import CacheGroup, CacheSpec

_MAX_PADDING_RATIO = 1.5  # decodes share a batch while the padded length stays within this of the shortest member's
_MIN_SPLIT_BLOCKS = 8  # below this many blocks padding costs less than another batch


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Blocks of one sequence in order. `first` is set when they lie next to each other, so that reading is a view."""

    ids: torch.Tensor  # int64 [num_blocks]
    first: int | None

    def read(self, paged: torch.Tensor) -> torch.Tensor:
        """Entries of these blocks, [num_blocks * block_tokens, *shape], from [num_blocks_total, block_tokens, *shape]."""
        count = self.ids.shape[0]
        blocks = paged.index_select(0, self.ids) if self.first is None else paged[self.first : self.first + count]
        return blocks.flatten(0, 1)


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """N decode rows of similar length that read the cache together.

    rows: int64 [N] on the token axis. blocks: int64 [N, B], 0 where absent. spans: for each row, which entries of its
    B * block_tokens it may see, as [start, stop). bias: [N, 1, 1, L] in the compute dtype, 0 where a row may see the
    entry and -inf elsewhere; None when N == 1, where only the visible entries are read. run: the blocks when N == 1.
    """

    rows: torch.Tensor
    blocks: torch.Tensor
    spans: tuple[tuple[int, int], ...]
    bias: torch.Tensor | None
    run: BlockRun | None

    def read(self, paged: torch.Tensor) -> torch.Tensor:
        """Entries [N, L, *shape] of a paged tensor, L as in `bias`."""
        if self.run is not None:
            start, stop = self.spans[0]
            return self.run.read(paged)[start:stop].unsqueeze(0)
        return paged[self.blocks].flatten(1, 2)


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """One prefill chunk: rows [start, stop) of the token axis, at positions [context, context + stop - start).

    `past` holds the blocks of positions [past_start, context) that its rows may see; the first `past_skip` entries of
    the run are before past_start.
    """

    start: int
    stop: int
    context: int
    past_start: int
    past_skip: int
    past: BlockRun

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    @property
    def num_past(self) -> int:
        return self.context - self.past_start

    def read_past(self, paged: torch.Tensor) -> torch.Tensor:
        """Entries of positions [past_start, context), [num_past, *shape]."""
        return self.past.read(paged)[self.past_skip : self.past_skip + self.num_past]


@dataclass(frozen=True)
class PagedAccess:
    """How one FULL or SLIDING group is written and read in this step.

    write_slots: int64 [W] indices into the flattened [num_blocks * block_tokens] axis; write_rows: the token rows they
    come from, None when all rows are written in order. table: int64 [S, B], blocks of each segment, -1 where absent;
    runs: int64 [S, 3], its first row, number of rows and tokens before them. `decodes` and `prefills` say the same in
    pieces that suit whole-tensor operations, and are worked out when somebody asks.
    """

    segments: Sequence[Segment]
    group: CacheGroup
    block_tokens: int
    dtype: torch.dtype
    write_slots: torch.Tensor
    write_rows: torch.Tensor | None
    table: torch.Tensor
    runs: torch.Tensor

    @cached_property
    def decodes(self) -> tuple[DecodeBatch, ...]:
        """Rows that are alone in their segment, batched."""
        return tuple(_plan_decodes(self))

    @cached_property
    def prefills(self) -> tuple[PrefillSpan, ...]:
        """The longer segments."""
        size, device = self.block_tokens, self.write_slots.device
        return tuple(
            _plan_prefill(segment, self.group, self.table[i], size, device)
            for i, segment in enumerate(self.segments)
            if segment.num_rows > 1
        )

    @cached_property
    def decode_rows(self) -> tuple[int, ...]:
        """Token rows that are alone in their segment."""
        return tuple(segment.row_start for segment in self.segments if segment.num_rows == 1)

    @cached_property
    def decoding(self) -> PagedAccess:
        """Access of `decode_rows` alone, gathered in this order; what is written stays as it is."""
        members = [i for i, segment in enumerate(self.segments) if segment.num_rows == 1]
        segments = [Segment(n, 1, self.segments[i].context_tokens) for n, i in enumerate(members)]
        return replace(self, segments=segments, table=self.table[members], runs=_runs(segments))


@dataclass(frozen=True, slots=True)
class StateSpan:
    """One prefill chunk on a state: rows [start, stop), the slot, and whether it begins from zero."""

    start: int
    stop: int
    slot: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class StateAccess:
    """How one STATE group is read and written: decode rows [N] with their slots [N], then the chunks.

    decode_fresh lists the members of the decode batch that begin from zero.
    """

    decode_rows: torch.Tensor
    decode_slots: torch.Tensor
    decode_fresh: tuple[int, ...]
    prefills: tuple[StateSpan, ...]


@dataclass(frozen=True, slots=True)
class StepContext:
    """Everything that the layers share in one step. `all_decode`: every row is a decode, in row order."""

    num_rows: int
    all_decode: bool
    rotations: Mapping[str, Rotation]
    paged: Mapping[str, PagedAccess]
    states: Mapping[str, StateAccess]


def plan_step(
    step: StepInput, spec: CacheSpec, rotations: Mapping[str, Rotation], dtype: torch.dtype, device: torch.device
) -> StepContext:
    """Work out the accesses of every cache group of `spec`; `dtype` is the compute dtype.

    Raises ValueError when the segments do not tile the token axis in order.
    """
    row = 0
    for segment in step.segments:
        if segment.row_start != row or segment.num_rows < 1:
            raise ValueError(f"segments must follow each other on the token axis, got {segment} at row {row}")
        row = segment.row_start + segment.num_rows
    if row != step.tokens.shape[0]:
        raise ValueError(f"segments cover {row} rows of {step.tokens.shape[0]}")
    paged = {g.name: _plan_paged(step, g, dtype, device) for g in spec.groups if not g.is_state}
    states = {g.name: _plan_state(step, g.name, device) for g in spec.groups if g.is_state}
    all_decode = all(s.num_rows == 1 for s in step.segments)
    return StepContext(step.tokens.shape[0], all_decode, rotations, paged, states)


def _plan_paged(step: StepInput, group: CacheGroup, dtype: torch.dtype, device: torch.device) -> PagedAccess:
    table = step.block_tables[group.name].long().cpu()
    segments, size = step.segments, step.block_tokens
    runs = _runs(segments)
    # In numpy, whose operations on a few numbers take a fraction of torch's time: this stands before every decoded token.
    first, count, context = runs.numpy().T
    owners = np.repeat(np.arange(len(segments)), count)
    positions = np.arange(len(owners)) + (context - first)[owners]
    blocks = table.numpy()[owners, positions // size]
    slots = torch.from_numpy(blocks * size + positions % size)
    write_rows = None
    if group.window_tokens is not None and (blocks < 0).any():
        write_rows = torch.from_numpy((blocks >= 0).nonzero()[0])
        slots = slots[write_rows]
    return PagedAccess(
        segments=segments,
        group=group,
        block_tokens=size,
        dtype=dtype,
        write_slots=slots.to(device),
        write_rows=None if write_rows is None else write_rows.to(device),
        table=table,
        runs=runs,
    )


def _runs(segments: Sequence[Segment]) -> torch.Tensor:
    return torch.tensor([(s.row_start, s.num_rows, s.context_tokens) for s in segments], dtype=torch.int64)


def _plan_decodes(access: PagedAccess) -> list[DecodeBatch]:
    segments, group, size = access.segments, access.group, access.block_tokens
    reach = {i: _decode_reach(s, group, size) for i, s in enumerate(segments) if s.num_rows == 1}
    batches: list[list[int]] = []
    for i in sorted(reach, key=lambda i: reach[i][1] - reach[i][0]):
        length = reach[i][1] - reach[i][0]
        shortest = reach[batches[-1][0]] if batches else (0, 0)
        limit = max(_MIN_SPLIT_BLOCKS, _MAX_PADDING_RATIO * (shortest[1] - shortest[0]))
        if batches and length <= limit:
            batches[-1].append(i)
        else:
            batches.append([i])
    return [_decode_batch(sorted(batch), reach, access) for batch in batches]


def _decode_reach(segment: Segment, group: CacheGroup, size: int) -> tuple[int, int]:
    """Block range [first, stop) that a decode row reads."""
    return group.first_needed_token(segment.context_tokens) // size, segment.context_tokens // size + 1


def _decode_batch(batch: list[int], reach: Mapping[int, tuple[int, int]], access: PagedAccess) -> DecodeBatch:
    size, device, segments = access.block_tokens, access.write_slots.device, access.segments
    width = max(reach[i][1] - reach[i][0] for i in batch)
    blocks = torch.zeros(len(batch), width, dtype=torch.int64)
    spans = []
    for n, i in enumerate(batch):
        first, stop = reach[i]
        blocks[n, : stop - first] = access.table[i, first:stop]
        context = segments[i].context_tokens
        spans.append((access.group.first_needed_token(context) - first * size, context + 1 - first * size))
    bias = None
    if len(batch) > 1:
        entries, edges = torch.arange(width * size), torch.tensor(spans)
        hidden = (entries < edges[:, :1]) | (entries >= edges[:, 1:])
        bias = torch.zeros(len(batch), width * size, dtype=access.dtype).masked_fill_(hidden, -torch.inf)[:, None, None]
        bias = bias.to(device)
    return DecodeBatch(
        rows=torch.tensor([segments[i].row_start for i in batch], device=device),
        blocks=blocks.to(device),
        spans=tuple(spans),
        bias=bias,
        run=_block_run(blocks[0].tolist(), device) if len(batch) == 1 else None,
    )


def _plan_prefill(segment: Segment, group: CacheGroup, table: torch.Tensor, size: int, device: torch.device) -> PrefillSpan:
    past_start = group.first_needed_token(segment.context_tokens)
    first, stop = past_start // size, -(-segment.context_tokens // size)
    if past_start == segment.context_tokens:
        first = stop
    return PrefillSpan(
        start=segment.row_start,
        stop=segment.row_start + segment.num_rows,
        context=segment.context_tokens,
        past_start=past_start,
        past_skip=past_start - first * size if stop > first else 0,
        past=_block_run(table[first:stop].tolist(), device),
    )


def _block_run(blocks: Sequence[int], device: torch.device) -> BlockRun:
    first = blocks[0] if blocks else 0
    adjacent = all(block == first + i for i, block in enumerate(blocks))
    return BlockRun(torch.tensor(blocks, dtype=torch.int64, device=device), first if adjacent else None)


def _plan_state(step: StepInput, group: str, device: torch.device) -> StateAccess:
    slots = step.state_slots[group].tolist()
    decodes = [i for i, s in enumerate(step.segments) if s.num_rows == 1]
    return StateAccess(
        decode_rows=torch.tensor([step.segments[i].row_start for i in decodes], dtype=torch.int64, device=device),
        decode_slots=torch.tensor([slots[i] for i in decodes], dtype=torch.int64, device=device),
        decode_fresh=tuple(n for n, i in enumerate(decodes) if step.segments[i].context_tokens == 0),
        prefills=tuple(
            StateSpan(s.row_start, s.row_start + s.num_rows, slots[i], s.context_tokens == 0)
            for i, s in enumerate(step.segments)
            if s.num_rows > 1
        ),
    )
