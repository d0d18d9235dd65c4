"""From logits to tokens: penalties, biases, grammar masks, truncation, the draw, and logprobs.

A drawn token depends on its row of logits and its `Draw` alone. Rows that are plain greedy share one argmax; the rest
are adjusted row by row and drawn together. Knows nothing of sequences, caches or how logits were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prfaas.engine.grammar import GrammarBook
from prfaas.engine.rules import penalised
from prfaas.engine.torch_penalties import Penalties
from prfaas.engine.torch_race import TokenRace
from prfaas.errors import EngineFailed, InvalidRequest, PrfaasError
from prfaas.sched.plan import Draw, Drawn
from prfaas.types import Grammar, SamplingParams, TokenLogprob

_NO_GRAMMARS = "response_format: this model has no end-of-sequence token, so a grammar could never end"


@dataclass(frozen=True, slots=True)
class SampleJob:
    """A draw from row `row` of the step's logits."""

    row: int
    draw: Draw


def _is_adjusted(draw: Draw) -> bool:
    """Something other than temperature and truncation changes the distribution."""
    p = draw.params
    return bool(p.grammar is not None or p.logit_bias or penalised(p) or draw.position < p.min_tokens)


def _is_plain(draw: Draw) -> bool:
    """Greedy, with nothing that would change or report the distribution."""
    return draw.params.temperature == 0.0 and draw.params.logprobs is None and not _is_adjusted(draw)


def _pick(logits: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """These rows; the tensor itself when they are all of it in order."""
    return logits if rows == list(range(logits.shape[0])) else logits[rows]


class TorchSampler:
    """Draws tokens. Order of adjustments: penalties, bias, min_tokens and grammar masks, temperature, top-k, top-p,
    min-p. Logprobs are of the model's own distribution, before any of it."""

    def __init__(
        self, vocab_size: int, eos_token_ids: Sequence[int], device: torch.device, grammars: GrammarBook | None
    ) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(eos_token_ids)
        self._device = device
        self._grammars = grammars
        self._race = TokenRace(vocab_size, device)
        self._penalties = Penalties(device)

    def sample(self, logits: torch.Tensor, jobs: Sequence[SampleJob]) -> list[Drawn]:
        """One token for each job, in order. logits: float32 [rows, vocab], left as it is.

        Raises EngineFailed on logits that are not numbers. Parameters must have passed `check`.
        """
        if not jobs:
            return []
        if all(_is_plain(job.draw) for job in jobs):
            return [Drawn(token) for token in self._greedy(logits, [job.row for job in jobs])]
        drawn: dict[int, Drawn] = {}
        plain = [at for at, job in enumerate(jobs) if _is_plain(job.draw)]
        if plain:
            tokens = self._greedy(logits, [jobs[at].row for at in plain])
            drawn.update((at, Drawn(token)) for at, token in zip(plain, tokens, strict=True))
        other = [at for at in range(len(jobs)) if at not in drawn]
        results = self._shaped(_pick(logits, [jobs[at].row for at in other]), [jobs[at].draw for at in other])
        drawn.update(zip(other, results, strict=True))
        return [drawn[at] for at in range(len(jobs))]

    def check(self, params: SamplingParams) -> None:
        """Raise InvalidRequest naming the parameter that cannot be honoured. From any thread."""
        if params.logit_bias:
            ids = [token_id for token_id, _ in params.logit_bias]
            if min(ids) < 0 or max(ids) >= self._vocab_size:
                raise InvalidRequest(f"logit_bias: token ids go from 0 to {self._vocab_size - 1}", param="logit_bias")
        if params.grammar is not None:
            self._followed().check(params.grammar)

    def forget(self, keys: Sequence[str]) -> None:
        """Drop what is remembered of samples that are over: their grammar's state and their token counts."""
        self._penalties.forget(keys)
        if self._grammars is not None:
            self._grammars.forget(keys)

    def _followed(self) -> GrammarBook:
        if self._grammars is None:
            raise InvalidRequest(_NO_GRAMMARS, param="response_format")
        return self._grammars

    @staticmethod
    def _greedy(logits: torch.Tensor, rows: list[int]) -> list[int]:
        best = _pick(logits, rows).max(dim=-1)
        if bool(best.values.isnan().any()):
            raise EngineFailed("the model produced logits that are not numbers")
        tokens: list[int] = best.indices.tolist()
        return tokens

    def _shaped(self, raw: torch.Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        shaped = raw.clone() if any(map(_is_adjusted, draws)) else raw
        errors: dict[int, PrfaasError] = {}  # a grammar that cannot be followed is its own request's misfortune
        for row, draw in enumerate(draws):
            if _is_adjusted(draw):
                try:
                    self._adjust_(shaped[row], draw)
                except PrfaasError as error:
                    errors[row] = error
        tokens: dict[int, int] = {}
        hot = [at for at, draw in enumerate(draws) if draw.params.temperature > 0.0]
        if hot:
            rows = shaped if len(hot) == len(draws) else shaped[hot]
            tokens.update(zip(hot, self._race.draw(rows, [draws[at] for at in hot]), strict=True))
        cold = [at for at in range(len(draws)) if at not in tokens]
        if cold:
            tokens.update(zip(cold, self._greedy(shaped, cold), strict=True))
        return [
            Drawn(tokens[row], error=errors[row]) if row in errors else self._report(raw[row], draw, tokens[row])
            for row, draw in enumerate(draws)
        ]

    def _adjust_(self, row: torch.Tensor, draw: Draw) -> None:
        p = draw.params
        if penalised(p):
            self._penalties.apply_(row, draw)
        if p.logit_bias:
            amounts = torch.tensor([amount for _, amount in p.logit_bias], dtype=row.dtype, device=self._device)
            row.index_add_(0, self._ids([token_id for token_id, _ in p.logit_bias]), amounts)
        banned = self._banned(draw)
        if p.grammar is not None:
            self._constrain_(row, draw, p.grammar, banned)
        elif banned:
            row[banned] = -torch.inf

    def _banned(self, draw: Draw) -> list[int]:
        """Tokens that would end the sample before `min_tokens`."""
        if draw.position >= draw.params.min_tokens:
            return []
        eos = () if draw.params.ignore_eos else self._eos_token_ids
        return [t for t in {*eos, *draw.params.stop_token_ids} if 0 <= t < self._vocab_size]

    def _constrain_(self, row: torch.Tensor, draw: Draw, grammar: Grammar, banned: Sequence[int]) -> None:
        """Keep what the grammar allows; a grammar that is complete may end a sample before `min_tokens`."""
        allowed = self._followed().allowed(draw.sample_key, grammar, draw.output_tokens)
        if banned:
            longer = allowed.copy()
            longer[list(banned)] = False
            allowed = longer if longer.any() else allowed
        row.masked_fill_(~torch.from_numpy(allowed).to(self._device), -torch.inf)

    def _report(self, raw: torch.Tensor, draw: Draw, token_id: int) -> Drawn:
        try:
            done = draw.params.grammar is not None and self._followed().advance(draw.sample_key, token_id)
        except PrfaasError as error:
            return Drawn(token_id, error=error)
        if draw.params.logprobs is None:
            return Drawn(token_id, grammar_done=done)
        ranked = rank_logprobs(raw[None], [token_id], draw.params.logprobs)[0]
        return Drawn(token_id, ranked[0].logprob, ranked[1:], done)

    def _ids(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self._device)


def rank_logprobs(logits: torch.Tensor, tokens: Sequence[int], num_best: int) -> list[tuple[TokenLogprob, ...]]:
    """For each row of float32 logits [rows, vocab]: the logprob of its token, then the `num_best` most likely."""
    normaliser = torch.logsumexp(logits, dim=-1, keepdim=True)
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None]) - normaliser
    best = torch.topk(logits, min(num_best, logits.shape[-1]))
    ids, values = best.indices.tolist(), (best.values - normaliser).tolist()
    return [
        (TokenLogprob(token, logprob), *map(TokenLogprob, row_ids, row_values))
        for token, logprob, row_ids, row_values in zip(tokens, chosen[:, 0].tolist(), ids, values, strict=True)
    ]
