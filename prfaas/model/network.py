"""The decoder that every family builds: embedding, blocks, final norm, output head. Implements `CausalLM`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F

from prfaas.model.api import LayerCache, LayerCallback, StepInput
from prfaas.model.layers.linear import Linear
from prfaas.model.layers.norm import RmsNorm
from prfaas.model.layers.rope import Rope
from prfaas.model.repeat import RepeatedSteps
from prfaas.model.step import StepContext, plan_step
from prfaas.modelspec import ModelSpec


class Mixer(Protocol):
    """The part of a block that looks at other tokens, through the cache."""

    def __call__(self, x: torch.Tensor, step: StepContext, cache: LayerCache) -> torch.Tensor:
        """x: [T, hidden] to [T, hidden]; writes this step's cache entries before reading."""
        ...


FeedForward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """x += post(mixer(pre(x))); x += post(ffn(pre(x))). The post norms exist in Gemma only."""

    mixer_norm: RmsNorm
    mixer: Mixer
    ffn_norm: RmsNorm
    ffn: FeedForward
    mixer_post_norm: RmsNorm | None = None
    ffn_post_norm: RmsNorm | None = None


@dataclass(frozen=True, slots=True)
class DecoderNetwork:
    """embedding: [vocab, hidden]; embedding_scale multiplies its rows. ropes: rotations by the name mixers use."""

    spec: ModelSpec
    device: torch.device
    dtype: torch.dtype
    embedding: torch.Tensor
    blocks: tuple[Block, ...]
    norm: RmsNorm
    head: Linear
    ropes: Mapping[str, Rope]
    embedding_scale: float = 1.0
    repeated: RepeatedSteps = field(default_factory=RepeatedSteps, init=False, repr=False, compare=False)

    def forward(self, step: StepInput, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        """See `prfaas.model.api.CausalLM.forward`."""
        with torch.inference_mode():
            rotations = {name: rope.rotation(step.positions, self.dtype) for name, rope in self.ropes.items()}
            context = plan_step(step, self.spec.cache, rotations, self.dtype, self.device)
            x = self._embed(step.tokens)
            normed = self.repeated.run(
                self.head.kernels, x, context, cache, lambda x, context: self._run(x, context, cache, _nobody)
            )
            if normed is None:
                normed = self._run(x, context, cache, on_layer)
            else:
                for index in range(len(self.blocks)):
                    on_layer(index)
            chosen = normed if step.logits_rows.shape[0] == x.shape[0] else normed.index_select(0, step.logits_rows)
            return self.head.logits(chosen)

    def compute(
        self, tokens: torch.Tensor, context: StepContext, cache: Sequence[LayerCache], on_layer: LayerCallback
    ) -> torch.Tensor:
        """The normed outputs [T, hidden] of a planned step's tokens [T], ready for the head."""
        return self._run(self._embed(tokens), context, cache, on_layer)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        x = F.embedding(tokens, self.embedding)
        return x if self.embedding_scale == 1.0 else x * self.embedding_scale

    def _run(self, x: torch.Tensor, context: StepContext, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        """Embedded rows [T, hidden] through all blocks and the final norm."""
        normed = self.blocks[0].mixer_norm(x)
        for index, block in enumerate(self.blocks):
            mixed = block.mixer(normed, context, cache[index])
            on_layer(index)
            x, normed = block.ffn_norm.after(x, mixed if block.mixer_post_norm is None else block.mixer_post_norm(mixed))
            fed = block.ffn(normed)
            fed = fed if block.ffn_post_norm is None else block.ffn_post_norm(fed)
            following = self.blocks[index + 1].mixer_norm if index + 1 < len(self.blocks) else self.norm
            x, normed = following.after(x, fed)
        return normed


def _nobody(layer: int) -> None:
    """Recorded work tells nobody of its layers: a repetition of it would not."""
