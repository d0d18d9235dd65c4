"""Repetition, presence and frequency penalties, from token counts that grow with each sample. Knows no requests.

A prompt is counted once and every drawn token as it comes, so that a step costs the number of different tokens seen,
not a walk through prompt and answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from prfaas.sched.plan import Draw
from prfaas.types import SamplingParams

_SPARE = 256  # room for this many new tokens when a history is full


class TokenHistory:
    """The different tokens of one prompt and its answer so far, and how often the answer has each."""

    def __init__(self, prompt: Sequence[int], device: torch.device) -> None:
        places = {token: at for at, token in enumerate(dict.fromkeys(prompt))}
        self.num_output = 0
        self._places: dict[int, int] = places
        self._ids = torch.tensor([*places, *[0] * _SPARE], dtype=torch.int64, device=device)
        self._counts = torch.zeros(len(self._ids), dtype=torch.float32, device=device)

    def extend(self, tokens: Sequence[int]) -> None:
        """Count further tokens of the answer."""
        for token in tokens:
            at = self._places.setdefault(token, len(self._places))
            if at == len(self._ids):
                room = self._ids.new_zeros(_SPARE + at // 2)
                self._ids, self._counts = torch.cat((self._ids, room)), torch.cat((self._counts, room.float()))
            self._ids[at] = token
            self._counts[at] += 1
        self.num_output += len(tokens)

    def apply_(self, row: torch.Tensor, params: SamplingParams) -> None:
        """Change one row of float32 logits [vocab] in place: repetition looks at prompt and answer, the others at the
        answer only."""
        seen = self._ids[: len(self._places)]
        values, counts = row[seen], self._counts[: len(self._places)]
        if params.repetition_penalty != 1.0:
            values = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
        row[seen] = values - params.presence_penalty * (counts > 0) - params.frequency_penalty * counts


class Penalties:
    """Histories of the samples that are being drawn, by sample key."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._histories: dict[str, TokenHistory] = {}

    def apply_(self, row: torch.Tensor, draw: Draw) -> None:
        """Penalise one row of logits for what the draw's sample has said. A draw without a key is counted afresh."""
        history = self._histories.get(draw.sample_key)
        if history is None or history.num_output > len(draw.output_tokens):
            history = TokenHistory(draw.prompt_tokens, self._device)
            if draw.sample_key:
                self._histories[draw.sample_key] = history
        history.extend(draw.output_tokens[history.num_output :])
        history.apply_(row, draw.params)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop samples that are over."""
        for key in keys:
            self._histories.pop(key, None)

    @property
    def num_samples(self) -> int:
        """Samples being counted, for leak audits."""
        return len(self._histories)
