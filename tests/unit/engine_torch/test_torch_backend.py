"""A step plan through the torch backend: packing, chunked prefill, batches, hooks, copies, logprobs, failures."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from prfaas.config import EngineSettings  # noqa: E402
from prfaas.engine.torch_backend import TorchBackend  # noqa: E402
from prfaas.engine.torch_device import CpuStaging  # noqa: E402
from prfaas.errors import ConfigError, EngineFailed  # noqa: E402
from prfaas.modelspec import KvRange  # noqa: E402
from prfaas.sched.plan import Copy, Draw, Row, StepPlan  # noqa: E402
from prfaas.types import SamplingParams  # noqa: E402
from tests.support.fake_causal_lm import VOCAB, FakeCausalLM, fake_spec  # noqa: E402

pytestmark = pytest.mark.torch

GREEDY = SamplingParams(temperature=0.0)
PROMPT = tuple(3 + (7 * i * i + 5 * i) % (VOCAB - 3) for i in range(11))


def backend(cache_bytes: int = 1 << 20) -> tuple[TorchBackend, FakeCausalLM]:
    model = FakeCausalLM()
    return TorchBackend(model, EngineSettings(cache_bytes=cache_bytes, block_tokens=4), None), model


def row(
    tokens: tuple[int, ...],
    context: int,
    *,
    sequence: int = 0,
    blocks: tuple[int, ...] = (3, 1, 6, 2),
    draws: tuple[Draw, ...] = (),
    prompt_logprobs: int | None = None,
    next_prompt_token: int | None = None,
) -> Row:
    return Row(
        sequence_id=sequence,
        tokens=tokens,
        context_tokens=context,
        block_tables={"full": blocks},
        state_slots={"state": sequence},
        draws=draws,
        prompt_logprobs=prompt_logprobs,
        next_prompt_token=next_prompt_token,
    )


def draw(prompt: tuple[int, ...], output: tuple[int, ...] = (), params: SamplingParams = GREEDY, index: int = 0) -> Draw:
    return Draw(index, len(output), params, prompt, output)


def generate(engine: TorchBackend, prompt: tuple[int, ...], chunks: tuple[int, ...], steps: int) -> list[int]:
    """Prefill in the given chunk sizes, then decode one token per step."""
    at = 0
    for size in chunks[:-1]:
        engine.execute(StepPlan((row(prompt[at : at + size], at),)), None)
        at += size
    result = engine.execute(StepPlan((row(prompt[at:], at, draws=(draw(prompt),)),)), None)
    output = [result.rows[0].drawn[0].token_id]
    while len(output) < steps:
        step = row((output[-1],), len(prompt) + len(output) - 1, draws=(draw(prompt, tuple(output)),))
        output.append(engine.execute(StepPlan((step,)), None).rows[0].drawn[0].token_id)
    return output


def reference(prompt: tuple[int, ...], steps: int) -> list[int]:
    model, tokens = FakeCausalLM(), list(prompt)
    for _ in range(steps):
        tokens.append(int(model.reference_logits(tokens)[-1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("chunks", [(11,), (4, 7), (1, 5, 5), (3, 4, 4)])
def test_greedy_output_equals_a_pass_without_cache_however_the_prompt_is_cut(chunks: tuple[int, ...]) -> None:
    engine, _ = backend()
    assert generate(engine, PROMPT, chunks, 5) == reference(PROMPT, 5)


def test_rows_of_one_step_do_not_disturb_each_other() -> None:
    engine, model = backend()
    short = PROMPT[:3]
    rows = (
        row(PROMPT, 0, sequence=4, blocks=(9, 7, 8), draws=(draw(PROMPT),)),
        row(short, 0, sequence=1, blocks=(2,), draws=(draw(short), draw(short, index=1))),
        row(PROMPT[:5], 0, sequence=2, blocks=(0, 1)),
    )
    result = engine.execute(StepPlan(rows), None)
    assert [d.token_id for d in result.rows[4].drawn] == reference(PROMPT, 1)
    assert [d.token_id for d in result.rows[1].drawn] == reference(short, 1) * 2
    assert result.rows[2].drawn == ()
    step = model.steps[-1]
    assert step.block_tables["full"].tolist() == [[9, 7, 8], [2, -1, -1], [0, 1, -1]]
    assert step.logits_rows.tolist() == [10, 13]
    assert step.positions.tolist() == [*range(11), *range(3), *range(5)]


def test_the_hook_hears_every_layer_and_may_read_it_at_once() -> None:
    engine, _ = backend()
    seen: list[tuple[int, bytes]] = []

    def hook(layer: int) -> None:
        wanted = KvRange("full", 0, 1, 0, 11) if layer == 0 else KvRange("state", 0, 1, 11, 11)
        seen.append((layer, bytes(engine.read(wanted, (3, 1, 6, 2) if layer == 0 else (0,)))))

    engine.execute(StepPlan((row(PROMPT, 0, draws=(draw(PROMPT),)),)), hook)
    assert [layer for layer, _ in seen] == [0, 1]
    assert seen[0][1] == bytes(engine.read(KvRange("full", 0, 1, 0, 11), (3, 1, 6, 2)))
    assert any(seen[0][1])
    assert any(seen[1][1])


def test_a_cache_carried_to_another_engine_continues_the_same_way() -> None:
    here, _ = backend()
    there, _ = backend()
    full, state = KvRange("full", 0, 1, 0, 11), KvRange("state", 0, 1, 11, 11)
    first = generate(here, PROMPT, (11,), 1)[0]
    dtypes = {g.name: [t.dtype for t in g.tensors] for g in fake_spec().cache.groups}
    there.write(full, (5, 0, 2), here.read(full, (3, 1, 6)), dtypes["full"])
    there.write(state, (3,), here.read(state, (0,)), dtypes["state"])
    output = [first]
    for _ in range(4):
        step = row((output[-1],), 10 + len(output), sequence=3, blocks=(5, 0, 2, 4), draws=(draw(PROMPT, tuple(output)),))
        output.append(there.execute(StepPlan((step,)), None).rows[3].drawn[0].token_id)
    assert output == reference(PROMPT, 5)


def test_copies_before_and_after_a_step_restore_and_snapshot_a_state() -> None:
    engine, _ = backend()
    engine.execute(StepPlan((row(PROMPT[:8], 0),), after=(Copy("state", 0, 7),)), None)
    expected = engine.execute(StepPlan((row(PROMPT[8:], 8, draws=(draw(PROMPT),)),)), None)
    again = StepPlan((row(PROMPT[8:], 8, draws=(draw(PROMPT),)),), before=(Copy("state", 7, 0),))
    assert engine.execute(again, None).rows[0] == expected.rows[0]
    stale = engine.execute(StepPlan((row(PROMPT[8:], 8, draws=(draw(PROMPT, params=SamplingParams(logprobs=0)),)),)), None)
    fresh_plan = StepPlan(
        (row(PROMPT[8:], 8, draws=(draw(PROMPT, params=SamplingParams(logprobs=0)),)),), before=(Copy("state", 7, 0),)
    )
    assert engine.execute(fresh_plan, None).rows[0].drawn[0].logprob != stale.rows[0].drawn[0].logprob


@pytest.mark.parametrize("cut", [11, 6, 1])
def test_prompt_logprobs_are_those_of_the_whole_prompt_however_it_is_cut(cut: int) -> None:
    engine, model = backend()
    first = row(PROMPT[:cut], 0, prompt_logprobs=2, next_prompt_token=PROMPT[cut] if cut < 11 else None)
    entries = list(engine.execute(StepPlan((first,)), None).rows[0].prompt_logprobs)
    if cut < 11:
        rest = row(PROMPT[cut:], cut, draws=(draw(PROMPT),), prompt_logprobs=2)
        result = engine.execute(StepPlan((rest,)), None).rows[0]
        entries += result.prompt_logprobs
        assert result.drawn[0].token_id == reference(PROMPT, 1)[0]
    expected = torch.log_softmax(model.reference_logits(PROMPT), dim=-1)
    assert len(entries) == 10
    for position, entry in enumerate(entries):
        assert entry[0].token_id == PROMPT[position + 1]
        assert math.isclose(entry[0].logprob, float(expected[position, PROMPT[position + 1]]), abs_tol=1e-4)
        assert [e.token_id for e in entry[1:]] == torch.topk(expected[position], 2).indices.tolist()


def test_a_plan_without_rows_only_copies() -> None:
    engine, model = backend()
    engine.execute(StepPlan((row(PROMPT[:8], 0),)), None)
    steps = len(model.steps)
    assert engine.execute(StepPlan((), before=(Copy("state", 0, 5),)), None).rows == {}
    assert len(model.steps) == steps
    state = KvRange("state", 0, 1, 8, 8)
    assert bytes(engine.read(state, (5,))) == bytes(engine.read(state, (0,)))


def test_a_failing_kernel_becomes_a_typed_error() -> None:
    engine, _ = backend()
    far = row((3,), 0, blocks=(10**6,), draws=(draw((3,)),))
    engine._model = BrokenModel()  # type: ignore[assignment]
    with pytest.raises(EngineFailed, match="a step of 1 tokens"):
        engine.execute(StepPlan((far,)), None)


class BrokenModel(FakeCausalLM):
    def forward(self, *_: object) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_logits_that_are_not_numbers_are_an_error_and_not_a_token() -> None:
    engine, model = backend()
    model._head[:, 5] = math.nan
    for params in (GREEDY, SamplingParams(temperature=1.0)):
        with pytest.raises(EngineFailed, match="not numbers"):
            engine.execute(StepPlan((row(PROMPT, 0, draws=(draw(PROMPT, params=params),)),)), None)


def test_the_deployment_may_shorten_the_context_but_not_stretch_it() -> None:
    model = FakeCausalLM()
    shorter = EngineSettings(cache_bytes=1 << 20, block_tokens=4, max_context_tokens=100)
    assert TorchBackend(model, shorter, None).spec.max_context_tokens == 100
    with pytest.raises(ConfigError, match="more than the 512 tokens"):
        TorchBackend(model, EngineSettings(cache_bytes=1 << 20, block_tokens=4, max_context_tokens=513), None)


def test_a_budget_too_small_for_one_sequence_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="raise cache_bytes"):
        backend(cache_bytes=100)


class NotedStaging(CpuStaging):
    """Notes, when a step is said to be over, what the state's slots hold."""

    def __init__(self) -> None:
        super().__init__()
        self.backend: TorchBackend | None = None
        self.slots: list[list[bytes]] = []

    def step_over(self) -> None:
        assert self.backend is not None
        wanted = KvRange("state", 0, 1, 4, 4)
        self.slots.append([bytes(self.backend.read(wanted, (slot,))) for slot in (0, 5)])


def test_a_step_is_over_after_its_last_copy_and_also_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    staging = NotedStaging()
    monkeypatch.setattr("prfaas.engine.torch_backend.make_staging", lambda *_: staging)
    engine, model = backend()
    staging.backend = engine
    engine.execute(StepPlan((row(PROMPT[:4], 0),), after=(Copy("state", 0, 5),)), None)
    working, snapshot = staging.slots.pop()
    assert working == snapshot
    assert any(snapshot)

    def refuse(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(EngineFailed, match="out of memory"):
        engine.execute(StepPlan((row(PROMPT[4:], 4),)), None)
    assert len(staging.slots) == 1
