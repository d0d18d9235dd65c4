"""Draws tokens at a temperature: the noise race over each row's likeliest tokens, and over the rest only when it must.

Most of a distribution's weight lies on a few hundred tokens. Those race against each other and against one runner that
stands for all the others together; only if that runner wins do the others race among themselves. The outcome has the
same distribution as a race of the whole vocabulary at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prfaas.engine.torch_filters import truncate_
from prfaas.engine.torch_noise import DrawNoise
from prfaas.errors import EngineFailed
from prfaas.sched.plan import Draw

_HEAD = 256
_MIN_TEMPERATURE = 1e-5  # colder than this is greedy in float32, and dividing by it would overflow


@dataclass(frozen=True, slots=True)
class _Head:
    """The likeliest tokens of each row, descending. probabilities: float32 [rows, head]; ids: int64 [rows, head]."""

    probabilities: torch.Tensor
    ids: torch.Tensor


class TokenRace:
    """Draws one token per row. Stateless but for its noise table."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._noise = DrawNoise(vocab_size, device)

    def draw(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
        """Tokens for float32 logits [len(draws), vocab]. Raises EngineFailed on logits that are not numbers."""
        temperatures = [max(d.params.temperature, _MIN_TEMPERATURE) for d in draws]
        probabilities = torch.softmax(logits / self._column(temperatures), dim=-1)
        head = _Head(*torch.topk(probabilities, min(_HEAD, self._vocab_size)))
        kept, inside = self._truncate(head, draws)
        scores = torch.where(kept, head.probabilities, 0.0).div_(self._noise.exponentials(draws, head.ids))
        best = scores.max(dim=-1)
        tokens = head.ids.gather(1, best.indices[:, None])[:, 0]
        rest = (1.0 - head.probabilities.sum(dim=-1)).clamp_(min=0.0) / self._noise.of_the_rest(draws)
        whole = torch.tensor([_filtered(d) for d in draws], device=self._device) & ~inside
        beaten = (rest > best.values) & ~inside & (head.ids.shape[1] < self._vocab_size)
        answers = torch.stack([tokens, whole, beaten, best.values.isnan()]).tolist()
        return [
            self._settle(probabilities[row], head.ids[row], draws[row], *answer)
            for row, answer in enumerate(zip(*answers, strict=True))
        ]

    def _settle(self, probabilities: torch.Tensor, head: torch.Tensor, draw: Draw, token: int, *flags: int) -> int:
        whole, beaten, broken = flags
        if broken:
            raise EngineFailed("the model produced logits that are not numbers")
        if whole:
            logits = truncate_(probabilities.log()[None], [draw.params])
            return self._race_all(logits.exp_(), draw)
        if beaten:
            return self._race_all(probabilities.index_fill(0, head, 0.0)[None], draw)
        return token

    def _race_all(self, probabilities: torch.Tensor, draw: Draw) -> int:
        return int(probabilities.div(self._noise.exponentials([draw])).argmax())

    def _truncate(self, head: _Head, draws: Sequence[Draw]) -> tuple[torch.Tensor, torch.Tensor]:
        """Which head tokens are kept, bool [rows, head], and whether all that is kept lies in the head, bool [rows].

        The rules are those of `truncate_`, with probabilities for logits.
        """
        p, size = head.probabilities, head.probabilities.shape[1]
        if not any(map(_filtered, draws)):
            return torch.ones_like(p, dtype=torch.bool), torch.zeros(p.shape[0], dtype=torch.bool, device=self._device)
        limits = [d.params.top_k if 0 < d.params.top_k <= size else size for d in draws]
        exact = self._column([d.params.top_k in range(1, size + 1) for d in draws])
        cutoff = p.gather(1, self._column(limits) - 1)
        cutoff = torch.where(exact, cutoff, 0.0)
        reached = p.cumsum(dim=-1, dtype=torch.float64)
        mass = torch.where(exact, reached.gather(1, self._column(limits) - 1), 1.0)
        nucleus = self._column([d.params.top_p for d in draws])
        before = torch.where(reached - p < nucleus.double() * mass, p, torch.inf).amin(dim=-1, keepdim=True)
        cutoff = torch.where(nucleus < 1.0, cutoff.maximum(before), cutoff)
        cutoff = cutoff.maximum(p[:, :1] * self._column([d.params.min_p for d in draws]))
        inside = (p[:, -1:] < cutoff)[:, 0]
        return p >= cutoff, inside

    def _column(self, values: Sequence[float] | Sequence[int] | Sequence[bool]) -> torch.Tensor:
        return torch.tensor(values, device=self._device)[:, None]


def _filtered(draw: Draw) -> bool:
    return draw.params.top_k > 0 or draw.params.top_p < 1.0 or draw.params.min_p > 0.0
