"""The backend that computes: one network, its paged cache and a sampler, driven by step plans.

Implements `prfaas.engine.backend.Backend`. Everything that was decided (which sequences, which blocks, when to copy)
comes with the plan; nothing is remembered between steps but cache contents, grammar states and token counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch

from prfaas.config import EngineSettings
from prfaas.engine.backend import LayerHook, PoolSize
from prfaas.engine.grammar import GrammarBook
from prfaas.engine.pool_sizes import plan_pools
from prfaas.engine.torch_copies import measure_copy_cost
from prfaas.engine.torch_device import Staging, Stopwatch, make_staging
from prfaas.engine.torch_inputs import PackedStep, pack_rows
from prfaas.engine.torch_sampler import TorchSampler, rank_logprobs
from prfaas.engine.torch_store import TorchStore
from prfaas.errors import ConfigError, EngineFailed
from prfaas.model.api import CausalLM
from prfaas.modelspec import DType, KvRange, ModelSpec
from prfaas.sched.plan import Row, RowResult, StepPlan, StepResult
from prfaas.sched.restore import CopyCost
from prfaas.types import SamplingParams, TokenLogprob

# Prompt logprobs need a softmax over the vocabulary for every token; rows are taken this many at a time.
_SCORE_ROWS = 64


class TorchBackend:
    """Owns the cache memory. `execute` belongs to the engine's thread; `read` and `write` may run beside it."""

    def __init__(self, model: CausalLM, settings: EngineSettings, grammars: GrammarBook | None) -> None:
        """Allocates all cache memory.

        Raises ConfigError when the budget cannot hold one sequence, or the context is longer than the model's.
        """
        spec = _within_context(model.spec, settings.max_context_tokens)
        self._model = model
        self._spec = spec
        self._grammars = grammars
        self._sizes = plan_pools(spec, settings)
        self._staging: Staging = make_staging(model.device, spec.num_layers)
        self._store = TorchStore(spec, self._sizes, model.device, self._staging)
        self._sampler = TorchSampler(spec.vocab_size, spec.eos_token_ids, model.device, grammars)

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    def pool_sizes(self) -> Mapping[str, PoolSize]:
        return self._sizes

    def copy_cost(self) -> CopyCost:
        with torch.inference_mode():
            return measure_copy_cost(self._store, self._spec.cache, self._sizes, self._staging)

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        """Run one step. Raises EngineFailed when torch does (out of memory, a failed kernel)."""
        self._sampler.forget(plan.ended)
        try:
            with torch.inference_mode():
                watch = self._copy_before(plan)
                results = self._run(plan.rows, on_layer) if plan.rows else {}
                self._store.copy(plan.after)
        except RuntimeError as error:
            raise EngineFailed(f"the device failed a step of {plan.num_tokens} tokens: {error}") from error
        finally:
            self._staging.step_over()
        return StepResult(results, None if watch is None else watch.elapsed_s())

    def _copy_before(self, plan: StepPlan) -> Stopwatch | None:
        """Run the copies before a step. Those from host memory touch nothing that the others touch, and go first, timed."""
        restores = [copy for copy in plan.before if copy.source_tier == "host"]
        if not restores:
            self._store.copy(plan.before)
            return None
        watch = self._staging.stopwatch()
        self._store.copy(restores)
        watch.stop()
        self._store.copy([copy for copy in plan.before if copy.source_tier != "host"])
        return watch

    def _run(self, rows: Sequence[Row], on_layer: LayerHook | None) -> dict[int, RowResult]:
        packed = pack_rows(rows, self._spec.cache, self._model.device)

        def layer_written(layer: int) -> None:
            self._staging.layer_written(layer)
            if on_layer is not None:
                on_layer(layer)

        logits = self._model.forward(packed.step, self._store.layers, layer_written)
        drawn = iter(self._sampler.sample(logits, packed.jobs))
        scores = self._score_prompts(logits, packed)
        return {
            row.sequence_id: RowResult(tuple(islice(drawn, len(row.draws))), scores.get(at, ())) for at, row in enumerate(rows)
        }

    def _score_prompts(self, logits: torch.Tensor, packed: PackedStep) -> dict[int, tuple[tuple[TokenLogprob, ...], ...]]:
        scores = {}
        for span in packed.scores:
            entries: list[tuple[TokenLogprob, ...]] = []
            for start in range(0, len(span.successors), _SCORE_ROWS):
                successors = span.successors[start : start + _SCORE_ROWS]
                first = span.logits_start + start
                entries.extend(rank_logprobs(logits[first : first + len(successors)], successors, span.num_best))
            scores[span.row] = tuple(entries)
        return scores

    def read(self, wanted: KvRange, blocks: Sequence[int]) -> memoryview:
        return self._store.read(wanted, blocks)

    def write(self, landed: KvRange, blocks: Sequence[int], payload: memoryview, dtypes: Sequence[DType]) -> None:
        self._store.write(landed, blocks, payload, dtypes)

    def check(self, params: SamplingParams) -> None:
        self._sampler.check(params)

    def accept(self, sample_key: str, tokens: Sequence[int]) -> None:
        if self._grammars is not None:
            self._grammars.accept(sample_key, tokens)

    def close(self) -> None:
        """Free the cache memory; weights go with the last reference to the model."""
        self._store.free()


def _within_context(spec: ModelSpec, limit: int | None) -> ModelSpec:
    """The spec with a context no longer than the deployment allows."""
    if limit is None:
        return spec
    if limit > spec.max_context_tokens:
        raise ConfigError(
            f"max_context_tokens = {limit} is more than the {spec.max_context_tokens} tokens that {spec.name} can see",
            max_context_tokens=limit,
        )
    return replace(spec, max_context_tokens=limit)
