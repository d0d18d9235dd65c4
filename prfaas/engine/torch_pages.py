"""Token ranges of one paged tensor to and from contiguous tensors. Knows blocks and offsets, nothing of groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class _Split:
    """A token range as a partial first block, whole blocks, and a partial last block.

    head, tail: (block id, first offset in the block, tokens), or None. whole: block ids.
    """

    head: tuple[int, int, int] | None
    whole: tuple[int, ...]
    tail: tuple[int, int, int] | None


def _split(blocks: Sequence[int], start: int, stop: int, block_tokens: int) -> _Split:
    first, last = start // block_tokens, -(-stop // block_tokens)
    ids = tuple(blocks[first:last])
    if len(ids) != last - first or min(ids) < 0:
        raise ValueError(f"tokens [{start}, {stop}) touch a block that is absent")
    head = tail = None
    offset = start - first * block_tokens
    if offset or (len(ids) == 1 and stop < last * block_tokens):
        head = (ids[0], offset, min(block_tokens - offset, stop - start))
        ids = ids[1:]
    rest = stop % block_tokens
    if ids and rest:
        tail = (ids[-1], 0, rest)
        ids = ids[:-1]
    return _Split(head, ids, tail)


def gather_tokens(paged: torch.Tensor, blocks: Sequence[int], start: int, stop: int, out: torch.Tensor) -> None:
    """Copy entries [start, stop) of a sequence into `out`.

    paged: [num_blocks, block_tokens, *shape]; blocks: the sequence's table from its start; out: contiguous
    [stop - start, *shape] of the same dtype. Raises ValueError when a needed block is absent.
    """
    block_tokens = paged.shape[1]
    split = _split(blocks, start, stop, block_tokens)
    done = 0
    if split.head is not None:
        block, offset, done = split.head
        out[:done].copy_(paged[block, offset : offset + done])
    if split.whole:
        num_tokens = len(split.whole) * block_tokens
        target = out[done : done + num_tokens].view(len(split.whole), *paged.shape[1:])
        torch.index_select(paged, 0, torch.tensor(split.whole, device=paged.device), out=target)
        done += num_tokens
    if split.tail is not None:
        block, _, rest = split.tail
        out[done : done + rest].copy_(paged[block, :rest])


def scatter_tokens(paged: torch.Tensor, blocks: Sequence[int], start: int, stop: int, entries: torch.Tensor) -> None:
    """Copy `entries` [stop - start, *shape], of any floating dtype, to positions [start, stop) of a sequence.

    Raises ValueError when a needed block is absent.
    """
    block_tokens = paged.shape[1]
    split = _split(blocks, start, stop, block_tokens)
    done = 0
    if split.head is not None:
        block, offset, done = split.head
        paged[block, offset : offset + done].copy_(entries[:done])
    if split.whole:
        num_tokens = len(split.whole) * block_tokens
        source = entries[done : done + num_tokens].view(len(split.whole), *paged.shape[1:])
        paged.index_copy_(0, torch.tensor(split.whole, device=paged.device), source.to(paged.dtype))
        done += num_tokens
    if split.tail is not None:
        block, _, rest = split.tail
        paged[block, :rest].copy_(entries[done : done + rest])
