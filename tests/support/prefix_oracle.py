"""What an emulated model answers and caches for a prompt, computed in one row without cache, scheduler or engine."""

from __future__ import annotations

from collections.abc import Sequence

from prfaas.engine.backend import PoolSize
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.rules import finish_reason
from prfaas.modelspec import KvRange, ModelSpec
from prfaas.sched.plan import Draw, Row, StepPlan
from prfaas.types import GenerationRequest
from tests.support.tiny_specs import INSTANT


class PrefixOracle:
    """Recomputes everything from position 0 for each token."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._blocks = -(-spec.max_context_tokens // spec.cache.block_tokens)
        sizes = {g.name: PoolSize(1 if g.is_state else self._blocks) for g in spec.cache.groups}
        self._backend = EmulatedBackend(spec, sizes, INSTANT, sleep=lambda _: None, audit=True)

    def answer(self, request: GenerationRequest, index: int = 0) -> list[int]:
        """The whole answer of one sample."""
        drawn: list[int] = []
        while True:
            draw = Draw(index, len(drawn), request.sampling, request.tokens, tuple(drawn))
            drawn.append(self._run([*request.tokens, *drawn], draw))
            if finish_reason(request, self.spec, drawn, grammar_done=False) is not None:
                return drawn

    def first_tokens(self, request: GenerationRequest) -> list[int]:
        """The first token of every sample."""
        return [
            self._run(request.tokens, Draw(index, 0, request.sampling, request.tokens, ()))
            for index in range(request.sampling.n)
        ]

    def payload(self, tokens: Sequence[int], wanted: KvRange) -> memoryview:
        """Canonical bytes of a range of the prompt's cache."""
        self._run(tokens, None)
        group = self.spec.cache.group(wanted.group)
        return self._backend.read(wanted, [0] if group.is_state else list(range(self._blocks)))

    def _run(self, tokens: Sequence[int], draw: Draw | None) -> int:
        groups = self.spec.cache.groups
        row = Row(
            sequence_id=0,
            tokens=tuple(tokens),
            context_tokens=0,
            block_tables={g.name: tuple(range(self._blocks)) for g in groups if not g.is_state},
            state_slots={g.name: 0 for g in groups if g.is_state},
            draws=() if draw is None else (draw,),
        )
        drawn = self._backend.execute(StepPlan((row,)), None).rows[0].drawn
        return drawn[0].token_id if drawn else -1
