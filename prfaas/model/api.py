"""The contract between the networks and whoever runs them: a step's inputs, the paged cache, and the logits.

All sequences of a step are concatenated along one token axis (no padding). Cache tensors are paged:
FULL and SLIDING groups hold [num_blocks, block_tokens, *token_shape], STATE groups [num_slots, *state_shape], per layer.
A layer first writes the step's new entries into the cache, then reads what it needs from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from prfaas.modelspec import ModelSpec

LayerCache = Mapping[str, torch.Tensor]  # tensor name of the layer's group -> paged tensor
LayerCallback = Callable[[int], None]  # called with the model layer index once its cache entries are written


@dataclass(frozen=True, slots=True)
class Segment:
    """One sequence's share of a step: rows [row_start, row_start + num_rows) of the token axis, which continue a
    sequence of which `context_tokens` are already in the cache."""

    row_start: int
    num_rows: int
    context_tokens: int

    @property
    def end_tokens(self) -> int:
        return self.context_tokens + self.num_rows


@dataclass(frozen=True, slots=True)
class StepInput:
    """One forward pass.

    tokens, positions: int64 [T]. block_tables: group name -> int32 [num_segments, max_blocks], -1 where a block is
    absent (outside a sliding window, or past the end); row i belongs to segments[i]. state_slots: group name -> int64
    [num_segments]. A segment with context_tokens == 0 starts from a zero state whatever the slot holds.
    logits_rows: int64 [R], rows of the token axis whose logits are wanted, ascending.
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    segments: Sequence[Segment]
    block_tables: Mapping[str, torch.Tensor]
    state_slots: Mapping[str, torch.Tensor]
    logits_rows: torch.Tensor
    block_tokens: int


class CausalLM(Protocol):
    """A network with weights in place."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """Compute dtype of activations."""
        ...

    def forward(self, step: StepInput, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        """Run one step in inference mode. `cache[i]` belongs to model layer i. Returns float32 logits [R, vocab].

        Calls `on_layer(i)` after layer i has written its cache entries (on CUDA: after they are enqueued).
        """
        ...


class ModelLoader(Protocol):
    """`prfaas.model.load.load_model`: reads a directory or GGUF file. Raises ModelLoadError saying what is wrong.

    `prfaas.model.load.describe_model(source, served_name, block_tokens, dtype)` gives the ModelSpec without weights.
    """

    def __call__(
        self, source: str, *, served_name: str, block_tokens: int, dtype: torch.dtype | None, device: torch.device
    ) -> CausalLM: ...
