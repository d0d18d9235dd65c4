"""A small hybrid network for tests of the engine's torch side: its logits depend on every cached entry and on the state.

One attention-like layer (group "full": tensors "k" and "v") and one recurrent layer (group "state"). `reference_logits`
computes the same from the whole sequence without any cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prfaas.model.api import LayerCache, LayerCallback, StepInput
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, ModelSpec, TensorSpec

WIDTH = 8
VOCAB = 96
EOS = 2


def fake_spec(block_tokens: int = 4, max_context_tokens: int = 512) -> ModelSpec:
    full = CacheGroup("full", GroupKind.FULL, (0,), (TensorSpec("k", (2, WIDTH), DType.F32), TensorSpec("v", (3,), DType.BF16)))
    state = CacheGroup(
        "state", GroupKind.STATE, (1,), (TensorSpec("recurrent", (WIDTH, 2), DType.F32), TensorSpec("conv", (3,), DType.BF16))
    )
    return ModelSpec(
        name="fake",
        architecture="Fake",
        vocab_size=VOCAB,
        num_layers=2,
        max_context_tokens=max_context_tokens,
        cache=CacheSpec((full, state), block_tokens),
        eos_token_ids=(EOS,),
        fingerprint=Fingerprint("fake", "fake", "fake"),
    )


class FakeCausalLM:
    """Implements `prfaas.model.api.CausalLM` on the CPU."""

    def __init__(self, spec: ModelSpec | None = None) -> None:
        self._spec = spec or fake_spec()
        generator = torch.Generator().manual_seed(5)
        self._embed = torch.randn(VOCAB, 2, WIDTH, generator=generator)
        self._head = torch.randn(2 * WIDTH + 2 * WIDTH + 6, VOCAB, generator=generator)
        self.steps: list[StepInput] = []

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, step: StepInput, cache: Sequence[LayerCache], on_layer: LayerCallback) -> torch.Tensor:
        self.steps.append(step)
        features = torch.zeros(step.tokens.shape[0], self._head.shape[0])
        for at, segment in enumerate(step.segments):
            rows = slice(segment.row_start, segment.row_start + segment.num_rows)
            table = step.block_tables["full"][at].tolist()
            for row in range(rows.start, rows.stop):
                position = int(step.positions[row])
                block, offset = table[position // step.block_tokens], position % step.block_tokens
                assert block >= 0
                cache[0]["k"][block, offset] = self._embed[step.tokens[row]]
                cache[0]["v"][block, offset] = self._tag(int(step.tokens[row]), position)
                seen = [(table[p // step.block_tokens], p % step.block_tokens) for p in range(position + 1)]
                keys = torch.stack([cache[0]["k"][b, o] for b, o in seen])
                tags = torch.stack([cache[0]["v"][b, o] for b, o in seen]).float()
                features[row, : 2 * WIDTH] = keys.mean(0).flatten()
                features[row, 2 * WIDTH : 2 * WIDTH + 3] = tags.mean(0)
        on_layer(0)
        for at, segment in enumerate(step.segments):
            slot = int(step.state_slots["state"][at])
            state, conv = cache[1]["recurrent"][slot], cache[1]["conv"][slot]
            if segment.context_tokens == 0:
                state.zero_()
                conv.zero_()
            for row in range(segment.row_start, segment.row_start + segment.num_rows):
                state.mul_(0.75).add_(self._embed[step.tokens[row]].T)
                conv.copy_(conv.float() * 0.5 + float(step.tokens[row]) / VOCAB)
                features[row, 2 * WIDTH + 3 : 4 * WIDTH + 3] = state.flatten()
                features[row, 4 * WIDTH + 3 :] = conv.float()
        on_layer(1)
        return features[step.logits_rows] @ self._head

    @staticmethod
    def _tag(token: int, position: int) -> torch.Tensor:
        return torch.tensor([token % 7, position % 5, 1.0])

    def reference_logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """float32 [len(tokens), vocab] of one sequence computed from scratch."""
        state = torch.zeros(WIDTH, 2)
        conv = torch.zeros(3, dtype=torch.bfloat16)
        rows = []
        for position, token in enumerate(tokens):
            state = state * 0.75 + self._embed[token].T
            conv = (conv.float() * 0.5 + token / VOCAB).to(torch.bfloat16)
            keys = self._embed[list(tokens[: position + 1])].mean(0).flatten()
            tags = torch.stack([self._tag(t, p) for p, t in enumerate(tokens[: position + 1])]).mean(0)
            rows.append(torch.cat([keys, tags, state.flatten(), conv.float()]) @ self._head)
        return torch.stack(rows)
