"""Preemption: with a host tier a sequence that had to leave comes back from host memory instead of computing again."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from prfaas.config import EngineSettings
from prfaas.engine.api import TokensOut
from prfaas.engine.core import EngineCore
from prfaas.engine.job import JobId, JobKind
from tests.support.engine_streams import ask, prompt
from tests.support.prefix_oracle import PrefixOracle
from tests.support.tiny_specs import emulated_backend, pool_sizes, tiny_spec

BLOCK, ANSWER = 4, 40
PROMPTS = (30, 26, 22)


@dataclass(frozen=True)
class Run:
    """What three long answers took that do not fit beside each other."""

    preemptions: int
    extra_tokens: int  # computed more than once


def run(shape: str, *, host: int) -> Run:
    """Every answer must be the oracle's. 34 blocks hold two whole sequences at most."""
    spec = tiny_spec(shape)
    backend = emulated_backend(spec, blocks=34, slots=9, host=host)
    settings = EngineSettings(kind="emulated", max_running=3, max_step_tokens=24, state_snapshot_blocks=2)
    core = EngineCore(spec, pool_sizes(spec, blocks=34, slots=9, host=host), settings)
    requests = [ask(prompt(length, seed=length), max_tokens=ANSWER, name=str(length)) for length in PROMPTS]
    jobs: list[JobId] = [core.submit(core.prepare(request, JobKind.GENERATE, float(i))) for i, request in enumerate(requests)]
    answers: dict[JobId, list[int]] = {job: [] for job in jobs}
    computed = 0
    for step in range(1000):
        plan = core.plan(float(step))
        if plan.empty:
            break
        computed += plan.num_tokens
        core.apply(plan, backend.execute(plan, None), float(step))
        core.check_integrity()
        for job, event in core.take_events():
            if isinstance(event, TokensOut):
                answers[job].extend(output.token_id for output in event.outputs)
    oracle = PrefixOracle(spec)
    for job, request in zip(jobs, requests, strict=True):
        assert answers[job] == oracle.answer(request, 0)
    needed = sum(length + ANSWER - 1 for length in PROMPTS)
    return Run(core.totals.preemptions, computed - needed)


@pytest.mark.parametrize("shape", ["dense", "kimi", "gemma", "everything"])
def test_a_preempted_sequence_comes_back_from_host_memory(shape: str) -> None:
    with_host, without = run(shape, host=64), run(shape, host=0)
    assert with_host.preemptions > 0
    assert without.preemptions > 0
    # What lies behind the last block boundary is computed again, and no more.
    assert with_host.extra_tokens <= with_host.preemptions * BLOCK
    assert without.extra_tokens > 2 * with_host.extra_tokens
