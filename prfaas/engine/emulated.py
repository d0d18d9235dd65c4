"""A backend without a network: steps take the time that a profile says, tokens and KV bytes are functions of the prefix.

A token is a hash of every cache word that a real model would attend to, in every layer of every group, so a block that
is missing, misplaced, stale or damaged on the way shows as a wrong token. It runs fleets on one machine and tests all
that is above a backend, without torch. Sampling has no distribution to shape here: temperature 0 depends on the prefix
alone, any other also on (seed, sample, position); what cannot be emulated at all is refused by `check`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prfaas.engine.backend import LayerHook, PoolSize
from prfaas.engine.emulated_store import BAD, STRIDE, EmulatedStore, Words, mix
from prfaas.errors import EngineFailed, UnsupportedParameter
from prfaas.modelspec import CacheGroup, DType, KvRange, ModelSpec
from prfaas.planner.profile import HardwareProfile
from prfaas.sched.plan import Draw, Drawn, Row, RowResult, StepPlan, StepResult
from prfaas.sched.restore import FREE, CopyCost
from prfaas.types import SamplingParams, TokenLogprob

MAX_REMEMBERED = 4096  # sequences whose attention sum is carried on instead of read again
TOKEN_SALT, DRAW_SALT = np.uint64(0xA5A5_1234_5A5A_4321), np.uint64(0x0D1C_E0D1_CE0D_1CE0)


class EmulatedBackend:
    """Implements `Backend`. `sleep` waits for that many seconds (time.sleep in a fleet, nothing in a test)."""

    def __init__(
        self,
        spec: ModelSpec,
        sizes: Mapping[str, PoolSize],
        profile: HardwareProfile,
        *,
        sleep: Callable[[float], None],
        time_scale: float = 1.0,
        audit: bool = False,
    ) -> None:
        """`audit` reads every attended entry in every step, instead of adding to the sum of the step before."""
        self._spec = spec
        self._sizes = dict(sizes)
        self._profile = profile
        self._sleep = sleep
        self._time_scale = time_scale
        self._audit = audit
        self._store = EmulatedStore(spec.cache, sizes)
        self._sums: OrderedDict[int, tuple[int, int]] = OrderedDict()  # sequence -> (tokens, sum over FULL groups)
        self.corrupt_entries = 0  # landed entries whose bytes did not belong together

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def pool_sizes(self) -> Mapping[str, PoolSize]:
        return self._sizes

    def copy_cost(self) -> CopyCost:
        return FREE  # a profile prices computing only

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        self._store.copy(plan.before)
        try:
            results = {row.sequence_id: self._compute(row) for row in plan.rows}
        except (ValueError, IndexError) as error:
            raise EngineFailed(f"a row of the step does not fit its blocks: {error}") from error
        self._wait(self.step_s(plan) * self._time_scale, on_layer if plan.rows else None)
        self._store.copy(plan.after)
        return StepResult(results)

    def read(self, wanted: KvRange, blocks: Sequence[int]) -> memoryview:
        return self._store.read(wanted, blocks)

    def write(self, landed: KvRange, blocks: Sequence[int], payload: memoryview, dtypes: Sequence[DType]) -> None:
        self.corrupt_entries += self._store.write(landed, blocks, payload, dtypes)

    def check(self, params: SamplingParams) -> None:
        if params.grammar is not None:
            raise UnsupportedParameter("an emulated engine has no text to constrain", param="response_format")
        if params.logit_bias:
            raise UnsupportedParameter("an emulated engine has no logits to bias", param="logit_bias")

    def accept(self, sample_key: str, tokens: Sequence[int]) -> None:
        raise EngineFailed("an emulated engine has no grammars")  # `check` lets no request with one in

    def close(self) -> None:
        self._store.free()

    def step_s(self, plan: StepPlan) -> float:
        """What the step takes by the profile, unscaled: its chunks one after the other, and its decodes together.

        A chunk of [a, b) costs T(b) - T(a) of the prefill curve T, with T(0) = 0.
        """
        decodes = plan.num_decodes
        chunks = [row for row in plan.rows if not (row.context_tokens and len(row.tokens) == 1)]
        curve = self._profile.prefill_s
        prefill_s = sum(curve(r.end_tokens) - (curve(r.context_tokens) if r.context_tokens else 0.0) for r in chunks)
        return max(0.0, prefill_s) + (self._profile.decode_step_s(decodes) if decodes else 0.0)

    def _wait(self, duration_s: float, on_layer: LayerHook | None) -> None:
        if on_layer is None:
            self._sleep(duration_s)
            return
        for layer in range(self._spec.num_layers):
            self._sleep(duration_s / self._spec.num_layers)
            on_layer(layer)

    def _compute(self, row: Row) -> RowResult:
        words = self._prefix_word(row) + _token_words(row).cumsum(dtype=np.uint64)
        for group in self._spec.cache.groups:
            spread = np.repeat(words[:, None], len(group.layers), axis=1)
            if group.is_state:
                self._store.put_state(group, row.state_slots[group.name], spread[-1:])
            else:
                first = max(row.context_tokens, self._first_kept(group, row))
                self._store.put(group, row.block_tables[group.name], first, spread[first - row.context_tokens :])
        seen = self._attend(row, words) if row.draws else np.uint64(0)
        drawn = tuple(self._draw(draw, seen) for draw in row.draws)
        return RowResult(drawn, self._prompt_logprobs(row, words))

    def _first_kept(self, group: CacheGroup, row: Row) -> int:
        """First position whose entry has a block: a chunk longer than a window keeps only what lies in its table."""
        table = row.block_tables[group.name]
        held = next((index for index, block in enumerate(table) if block >= 0), len(table))
        return held * self._spec.cache.block_tokens

    def _prefix_word(self, row: Row) -> np.uint64:
        """The word of the last cached position; if groups or layers disagree about it, a word that no prefix has."""
        context = row.context_tokens
        if context == 0:
            return np.uint64(0)
        found: list[Words] = []
        for group in self._spec.cache.groups:
            if group.is_state:
                found.append(self._store.state(group, row.state_slots[group.name])[0])
            elif group.first_needed_token(context) < context:
                found.append(self._store.entries(group, row.block_tables[group.name], context - 1, context)[0])
        words = np.concatenate(found)
        if (words == words[0]).all():
            return np.uint64(words[0])
        return np.uint64(_blend(words) ^ BAD)

    def _attend(self, row: Row, words: Words) -> np.uint64:
        """A sum over all that the last token attends to, position, layer and group included."""
        total, end = int(words[-1]), row.end_tokens
        for group in self._spec.cache.groups:
            if not group.is_state and group.window_tokens is not None:
                total += self._sum(group, row, max(0, end - group.window_tokens), end)
        known_tokens, full_sum = self._sums.pop(row.sequence_id, (0, 0))
        if self._audit or known_tokens != row.context_tokens:
            known_tokens, full_sum = 0, 0
        for group in self._spec.cache.groups:
            if not group.is_state and group.window_tokens is None:
                full_sum += self._sum(group, row, known_tokens, end)
        self._sums[row.sequence_id] = (end, full_sum)
        if len(self._sums) > MAX_REMEMBERED:
            self._sums.popitem(last=False)
        return np.uint64((total + full_sum) % 2**64)

    def _sum(self, group: CacheGroup, row: Row, start: int, stop: int) -> int:
        words = self._store.entries(group, row.block_tables[group.name], start, stop)
        places = np.arange(start, stop, dtype=np.uint64)[:, None] * STRIDE + np.array(group.layers, np.uint64)[None, :]
        return int(mix(words ^ places).sum(dtype=np.uint64))

    def _draw(self, draw: Draw, seen: np.uint64) -> Drawn:
        word = seen ^ TOKEN_SALT
        if draw.params.temperature > 0:
            place = np.array([draw.params.seed % 2**64, draw.index, draw.position], np.uint64)
            word ^= _blend(place ^ DRAW_SALT)
        number = int(mix(np.array([word], np.uint64))[0])
        token = number % self._spec.vocab_size
        if draw.position < draw.params.min_tokens:
            while token in self._spec.eos_token_ids or token in draw.params.stop_token_ids:
                token = (token + 1) % self._spec.vocab_size
        if draw.params.logprobs is None:
            return Drawn(token)
        best = self._alternatives(token, number, draw.params.logprobs)
        return Drawn(token, _logprob(number), best)

    def _prompt_logprobs(self, row: Row, words: Words) -> tuple[tuple[TokenLogprob, ...], ...]:
        if row.prompt_logprobs is None:
            return ()
        successors = [*row.tokens[1:], *([] if row.next_prompt_token is None else [row.next_prompt_token])]
        return tuple(
            (TokenLogprob(token, _logprob(int(word))), *self._alternatives(token, int(word), row.prompt_logprobs))
            for token, word in zip(successors, words, strict=False)
        )

    def _alternatives(self, token: int, number: int, count: int) -> tuple[TokenLogprob, ...]:
        """The `count` best tokens, the given one first."""
        size = self._spec.vocab_size
        return tuple(TokenLogprob((token + j) % size, _logprob(number) - j) for j in range(min(count, size)))


def _blend(words: Words) -> np.uint64:
    """One word that depends on every one of `words` and on their order."""
    places: Words = np.arange(1, len(words) + 1, dtype=np.uint64) * STRIDE
    return np.uint64(mix(mix(words) + places).sum(dtype=np.uint64))


def _token_words(row: Row) -> Words:
    positions = np.arange(row.context_tokens, row.end_tokens, dtype=np.uint64)
    return mix(np.asarray(row.tokens, np.uint64) * STRIDE + mix(positions + np.uint64(1)))


def _logprob(number: int) -> float:
    return -4.0 * ((number >> 40) / 2**24)
