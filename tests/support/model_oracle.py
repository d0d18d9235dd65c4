"""Compares a network of ours with transformers on the same files: logits and cache, however the tokens are fed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from prfaas.model.load import load_model
from prfaas.model.network import DecoderNetwork
from tests.support.paged_runner import PagedRunner


@dataclass(frozen=True)
class Reference:
    """transformers' answer: logits [T, vocab] and its cache object after T tokens."""

    logits: torch.Tensor
    cache: Any


def load_ours(directory: Path, *, block_tokens: int = 16, dtype: torch.dtype = torch.float32) -> DecoderNetwork:
    network = load_model(str(directory), served_name="m", block_tokens=block_tokens, dtype=dtype, device=torch.device("cpu"))
    assert isinstance(network, DecoderNetwork)
    return network


def load_reference(directory: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def reference_run(model: Any, tokens: list[int]) -> Reference:
    with torch.no_grad():
        output = model(torch.tensor([tokens]), use_cache=True)
    return Reference(output.logits[0].float(), output.past_key_values)


def random_tokens(count: int, vocab: int, seed: int = 0) -> list[int]:
    """Ids without the special ones, from which transformers would infer padding."""
    return torch.randint(8, vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def fed_in_pieces(network: DecoderNetwork, tokens: list[int], cuts: list[int]) -> tuple[torch.Tensor, PagedRunner, Any]:
    """Feed tokens cut at `cuts`, another sequence running beside it in every step. Returns logits, runner, sequence."""
    runner = PagedRunner(network)
    ours, other = runner.start(), runner.start()
    rows = []
    for index, (start, stop) in enumerate(zip([0, *cuts], [*cuts, len(tokens)], strict=True)):
        piece, beside = (ours, tokens[start:stop]), (other, tokens[: 1 + 7 * (index % 3)])
        if index % 2:
            rows.append(runner.run(beside, piece)[len(beside[1]) :])
        else:
            rows.append(runner.run(piece, beside)[: stop - start])
    return torch.cat(rows), runner, ours
