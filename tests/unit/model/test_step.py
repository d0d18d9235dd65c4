"""Steps as schedulers build them: mixed segments, unequal lengths, scattered or adjacent blocks, long contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prfaas.model.api import Segment, StepInput
from prfaas.model.step import plan_step
from prfaas.model.tiny import TINY_MODELS
from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, TensorSpec
from tests.support.model_oracle import load_ours, random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch
CPU = torch.device("cpu")
ENTRY = (TensorSpec("k", (1,), DType.F32),)
FULL = CacheGroup("full", GroupKind.FULL, (0,), ENTRY)
WINDOW = CacheGroup("sliding", GroupKind.SLIDING, (1,), ENTRY, window_tokens=6)


def step(segments: list[tuple[int, int]], tables: list[list[int]], group: str) -> StepInput:
    """segments: (rows, context); blocks of 4 tokens."""
    placed, row = [], 0
    for rows, context in segments:
        placed.append(Segment(row, rows, context))
        row += rows
    width = max(len(t) for t in tables)
    table = torch.tensor([t + [-1] * (width - len(t)) for t in tables], dtype=torch.int32)
    positions = torch.cat([torch.arange(s.context_tokens, s.end_tokens) for s in placed])
    empty = torch.empty(0, dtype=torch.int64)
    return StepInput(torch.zeros(row, dtype=torch.int64), positions, placed, {group: table}, {}, empty, 4)


def test_rows_are_written_where_the_block_table_says() -> None:
    plan = plan_step(step([(3, 2), (1, 9)], [[5, 2], [1, 0, 7]], "full"), CacheSpec((FULL,), 4), {}, torch.float32, CPU)
    access = plan.paged["full"]
    assert access.write_slots.tolist() == [22, 23, 8, 29]
    assert access.write_rows is None
    assert not plan.all_decode


def test_a_window_reads_only_its_blocks_and_skips_rows_without_one() -> None:
    tables = [[-1, -1, 9, 4], [-1, 2, 3, 8]]
    plan = plan_step(step([(1, 13), (6, 10)], tables, "sliding"), CacheSpec((WINDOW,), 4), {}, torch.float32, CPU)
    access = plan.paged["sliding"]
    (decode,), (prefill,) = access.decodes, access.prefills
    assert (decode.blocks.tolist(), decode.spans) == ([[9, 4]], ((0, 6),))  # positions 8 to 13 of blocks 2 and 3
    assert (prefill.past_start, prefill.past_skip, prefill.past.ids.tolist()) == (5, 1, [2, 3])
    assert access.write_rows is None
    plan = plan_step(step([(12, 0)], [[-1, 3, 8]], "sliding"), CacheSpec((WINDOW,), 4), {}, torch.float32, CPU)
    rows = plan.paged["sliding"].write_rows
    assert rows is not None
    assert rows.tolist() == list(range(4, 12))
    assert plan.paged["sliding"].write_slots.tolist() == [12, 13, 14, 15, 32, 33, 34, 35]


def test_adjacent_blocks_are_read_without_a_copy() -> None:
    paged = torch.arange(40.0).view(10, 4, 1)
    plan = plan_step(step([(2, 12)], [[4, 5, 6, 7]], "full"), CacheSpec((FULL,), 4), {}, torch.float32, CPU)
    past = plan.paged["full"].prefills[0].read_past(paged)
    assert past.data_ptr() == paged[4].data_ptr()
    assert past.flatten().tolist() == list(range(16, 28))


def test_decodes_of_very_different_length_do_not_share_a_batch() -> None:
    lengths = [3, 5, 399, 7, 401]
    tables = [list(range(101))] * 5
    plan = plan_step(step([(1, n) for n in lengths], tables, "full"), CacheSpec((FULL,), 4), {}, torch.float32, CPU)
    batches = [(b.rows.tolist(), b.blocks.shape[1]) for b in plan.paged["full"].decodes]
    assert batches == [([0, 1, 3], 2), ([2, 4], 101)]


def test_segments_that_do_not_tile_the_rows_are_refused() -> None:
    good = step([(2, 0), (2, 0)], [[0], [1]], "full")
    for segments in ([Segment(0, 2, 0), Segment(3, 1, 0)], [Segment(0, 2, 0)], [Segment(0, 0, 0), Segment(0, 4, 0)]):
        with pytest.raises(ValueError, match="segments"):
            plan_step(replace(good, segments=segments), CacheSpec((FULL,), 4), {}, torch.float32, CPU)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_sequence_computes_the_same_whatever_runs_beside_it(name: str, tiny: Callable[[str], Path]) -> None:
    network = load_ours(tiny(name))
    alone, crowd = PagedRunner(network, num_blocks=96, scramble=False), PagedRunner(network, num_blocks=96)
    prompt, lengths = random_tokens(60, 512, seed=9), [1, 200, 31, 64]
    single, ours = alone.start(), crowd.start()
    others = [crowd.start() for _ in lengths]
    parts = [(other, random_tokens(n, 512, seed=n)) for other, n in zip(others, lengths, strict=True)]
    wanted = [alone.run((single, prompt[:59]))[-1], alone.run((single, prompt[59:]))[-1]]
    first = crowd.run(*parts[:2], (ours, prompt[:59]), *parts[2:])[201 + 58]
    second = crowd.run((others[1], [3]), (others[0], [4]), (ours, prompt[59:]), (others[2], [5, 6, 7]))[2]
    assert (first - wanted[0]).abs().max() < 1e-3  # 2.5e-4 of the logits' spread
    assert (second - wanted[1]).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["tiny-kimi-linear", "tiny-gemma3", "tiny-deepseek-v3"])
def test_a_prompt_of_three_thousand_tokens_in_chunks_equals_one_piece(name: str, tiny: Callable[[str], Path]) -> None:
    network = load_ours(tiny(name), block_tokens=64)
    tokens = random_tokens(3000, 512, seed=1)
    whole = PagedRunner(network, num_blocks=50)
    wanted = whole.run((whole.start(), tokens), every_row=False)
    pieces = PagedRunner(network, num_blocks=50)
    sequence = pieces.start()
    for start in range(0, 3000, 512):
        logits = pieces.run((sequence, tokens[start : start + 512]), every_row=False)
    assert (logits - wanted).abs().max() < 5e-3
    assert logits.argmax() == wanted.argmax()


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, tuple | list) else [result]:
            if isinstance(item, torch.Tensor):
                self.numel = max(self.numel, item.untyped_storage().nbytes() // item.element_size())
        return result


@pytest.mark.parametrize("name", TINY_MODELS)
def test_memory_does_not_grow_with_the_square_of_the_prompt(name: str, tiny: Callable[[str], Path]) -> None:
    network = load_ours(tiny(name), block_tokens=64)
    largest = []
    for length in (1024, 4096):
        runner = PagedRunner(network, num_blocks=65)
        sequence = runner.start()
        with LargestTensor() as seen:
            for start in range(0, length, 1024):
                runner.run((sequence, random_tokens(1024, 512)), every_row=False)
                assert start + 1024 == sequence.length
        largest.append(seen.numel)
    assert largest[1] <= 4.2 * largest[0]
    assert largest[1] < 4096 * 1024
