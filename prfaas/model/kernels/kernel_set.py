"""The port for arithmetic that has more than one implementation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.layers.rope import Rotation
from prfaas.model.step import PagedAccess


@dataclass(frozen=True, slots=True)
class DeltaRun:
    """Rows [start, stop) advance the state in `slot`."""

    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """Causal attention of a step's rows, whose own entries are written into the cache first.

    query: [T, Hq, d] and key: [T, Hkv, d] before `rotation`; value: [T, Hkv, dv]; keys, values: the cache, [num_blocks,
    block_tokens, Hkv, d or dv]. A row sees the last `window_tokens` positions, itself included.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    rotation: Rotation
    keys: torch.Tensor
    values: torch.Tensor
    access: PagedAccess
    scale: float
    window_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What came of recorded work. `repeat` does the same again from what lies in the same memory by then, into `result`."""

    result: torch.Tensor
    repeat: Callable[[], None] | None


class Kernels(Protocol):
    """Implementations agree up to rounding. Only what was recorded keeps references to arguments."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recorded:
        """Do `work` once, and return what repeats its kernel calls at once, in less time.

        Not repeatable (None) where `work` does more than call kernels and view their results, or where these kernels
        cannot record. What is repeated has the shapes and numbers of the first time; only tensors' contents may differ.
        """
        ...

    def settle(self, weight: torch.Tensor) -> None:
        """Prepare for reading a weight over and over. May move its pages, never its address or content."""
        ...

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """x: [..., in], weight: [out, in], bias: [out] to [..., out]."""
        ...

    def logits(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`linear` with a float32 result. x: [T, in]."""
        ...

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x: [..., d], weight: float32 [d]; computed in float32, returned in x's dtype."""
        ...

    def add_norm(
        self, x: torch.Tensor, more: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + more, and `rms_norm` of it. x, more: [T, d]."""
        ...

    def gated_mlp(self, x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """down(silu(gate(x)) * up(x)). x: [T, in]; gate_up: [2 * inner, in], gate rows first; down: [out, inner]."""
        ...

    def experts(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
    ) -> torch.Tensor:
        """Sum of each token's weighted experts, each a `gated_mlp`. x: [T, hidden]; ids: int64 [T, k]; weights: float32
        [T, k]; gate_up: [E, 2 * inner, hidden]; down: [E, hidden, inner]. Returns [T, hidden]."""
        ...

    def store(self, fresh: torch.Tensor, paged: torch.Tensor, access: PagedAccess) -> None:
        """Write a step's entries [T, *shape] into the cache [num_blocks, block_tokens, *shape], in the cache's dtype."""
        ...

    def attend(self, call: PagedAttention) -> torch.Tensor:
        """Returns [T, Hq, dv]."""
        ...

    def attend_latent(
        self, query: torch.Tensor, latents: torch.Tensor, access: PagedAccess, scale: float, value_width: int
    ) -> torch.Tensor:
        """Absorbed latent attention of decode rows: all heads share one key, whose first channels are the value.

        query: [N, H, c], a row for each segment of `access`; latents: the cache [num_blocks, block_tokens, c].
        Returns [N, H, value_width].
        """
        ...

    def delta(self, rows: DeltaRows, states: torch.Tensor, runs: Sequence[DeltaRun]) -> torch.Tensor:
        """The gated delta rule, see `kernels.delta_rule`. states: float32 [num_slots, H, dk, dv], updated in place. `runs`
        tile the rows. Returns [T, H, dv]."""
        ...

    def delta_each(self, rows: DeltaRows, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        """`delta` for rows that are alone: row i advances the state in slots[i], int64 [T], where the states are."""
        ...
