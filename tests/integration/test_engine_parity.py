"""The engine against `transformers` on the same weights, token for token, through the real loop, scheduler and cache."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import pytest_asyncio

pytest.importorskip("torch")

from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted, Engine, EngineStream, Finished, LayersReady, TokensOut
from prfaas.engine.factory import build_engine
from prfaas.errors import InvalidRequest, PromptTooLong
from prfaas.metrics import Emitter, MetricSet
from prfaas.model.tiny import write_tiny_model
from prfaas.modelspec import KvRange
from prfaas.text.load import load_text_model
from prfaas.types import FinishReason, GenerationRequest, Grammar, GrammarKind, RequestId, SamplingParams, TokenOutput, Usage
from tests.support import reference
from tests.support.models import demo_model

pytestmark = [pytest.mark.torch, pytest.mark.timeout(600), pytest.mark.asyncio(loop_scope="module")]

LENGTHS = (1, 63, 64, 65, 500, 1300, 129, 7)
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under test, and two engines that run it."""

    source: str
    vocab: int
    engine: Engine
    other: Engine

    def prompt(self, num_tokens: int, seed: int = 5) -> tuple[int, ...]:
        return reference.prompt(num_tokens, self.vocab, seed)


@dataclass(slots=True)
class Answer:
    """Everything one stream said."""

    outputs: dict[int, list[TokenOutput]] = field(default_factory=dict)
    admitted: Admitted | None = None
    usage: Usage | None = None
    first: tuple[TokenOutput, ...] = ()

    def tokens(self, index: int = 0) -> list[int]:
        return [output.token_id for output in self.outputs[index]]


async def collect(stream: EngineStream) -> Answer:
    answer = Answer()
    async for event in stream.events():
        if isinstance(event, Admitted):
            answer.admitted = event
        elif isinstance(event, TokensOut):
            answer.first = answer.first or event.outputs
            for output in event.outputs:
                answer.outputs.setdefault(output.index, []).append(output)
        elif isinstance(event, Finished):
            answer.usage = event.usage
    return answer


def request(tokens: tuple[int, ...], sampling: SamplingParams = GREEDY, *, salt: str = "") -> GenerationRequest:
    return GenerationRequest(RequestId("r"), "m", tokens, sampling, cache_salt=salt)


def start(source: str) -> Engine:
    settings = EngineSettings(device="cpu", dtype="float32", num_threads=2, cache_bytes=768 * 1024**2)
    return build_engine(settings, source=source, served_name="m", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock())


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["tiny-kimi-linear", pytest.param("smollm2", marks=pytest.mark.demo_model)]
)
async def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    if request.param == "smollm2":
        source, vocab = demo_model(), 49_000
    else:
        directory = tmp_path_factory.mktemp("models") / request.param
        write_tiny_model(request.param, directory)
        source, vocab = str(directory), 500
    engine, other = start(source), start(source)
    yield Subject(source, vocab, engine, other)
    for running in (engine, other):
        idle = running.counters()
        await running.close()
        for name in ("sequences_running", "sequences_waiting", "landings", "exports_pinned", "blocks_used", "slots_used"):
            assert idle[name] == 0, f"{name} leaked"


async def test_eight_requests_at_once_equal_the_reference(subject: Subject) -> None:
    prompts = [subject.prompt(n) for n in LENGTHS]
    answers = await asyncio.gather(*(collect(subject.engine.submit(request(p))) for p in prompts))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert answer.tokens() == reference.greedy(subject.source, prompt, 16), f"a prompt of {len(prompt)} tokens"
        assert answer.outputs[0][-1].finish_reason is FinishReason.LENGTH
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(prompt), 16)


async def ship(subject: Subject, prompt: tuple[int, ...], sampling: SamplingParams = GREEDY) -> Answer:
    """Prefill on one engine, land every range on the other as soon as it is ready, decode there."""
    wanted = request(prompt, sampling)
    spec, num_tokens = subject.engine.spec, len(prompt)
    landing = await subject.other.reserve(wanted, timeout_s=10.0)
    export = subject.engine.submit(wanted, export=True)
    first: tuple[TokenOutput, ...] = ()
    async for event in export.events():
        if isinstance(event, TokensOut):
            first = event.outputs
        if not isinstance(event, LayersReady):
            continue
        for group in spec.cache.groups:
            ordinals = [at for at, layer in enumerate(group.layers) if event.layer_start <= layer < event.layer_stop]
            if group.is_state:
                start, stop = num_tokens, num_tokens
                due = event.token_stop == num_tokens
            else:
                start = max(event.token_start, landing.held_tokens, group.first_needed_token(num_tokens))
                stop = event.token_stop
                due = start < stop
            for at in ordinals if due else ():
                wire = KvRange(group.name, at, at + 1, start, stop)
                landing.write(wire, export.read(wire), [t.dtype for t in group.tensors])
    stream = landing.commit(first)
    answer = await collect(stream)
    export.release()
    assert answer.first[0].token_id == first[0].token_id
    return answer


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 700])
async def test_a_landed_cache_continues_as_the_reference(subject: Subject, num_tokens: int) -> None:
    prompt = subject.prompt(num_tokens, seed=8)
    assert (await ship(subject, prompt)).tokens() == reference.greedy(subject.source, prompt, 16)


async def test_a_landing_on_a_held_prefix_needs_only_the_rest(subject: Subject) -> None:
    prompt = subject.prompt(400, seed=9)
    await collect(subject.other.submit(request(prompt[:300])))
    held = subject.other.match(request(prompt))
    assert held > 0
    assert (await ship(subject, prompt)).tokens() == reference.greedy(subject.source, prompt, 16)


async def test_a_prefix_hit_changes_no_token(subject: Subject) -> None:
    prompt = subject.prompt(333, seed=10)
    cold = await collect(subject.engine.submit(request(prompt)))
    warm = await collect(subject.engine.submit(request(prompt)))
    assert warm.admitted is not None
    assert warm.admitted.cached_tokens >= 256
    assert warm.tokens() == cold.tokens()
    turn = (*prompt, *cold.tokens(), *subject.prompt(40, seed=11))
    again = await collect(subject.engine.submit(request(turn)))
    assert again.admitted is not None
    assert again.admitted.cached_tokens >= 256
    assert again.tokens() == reference.greedy(subject.source, turn, 16)


async def test_samples_share_a_prefill_and_each_is_what_it_is_alone(subject: Subject) -> None:
    prompt = subject.prompt(130, seed=12)
    hot = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=12, seed=77, n=3, ignore_eos=True)
    alone = await collect(subject.engine.submit(request(prompt, hot)))
    noise = [request(subject.prompt(20 + i, seed=13), replace(hot, n=1, seed=i)) for i in range(5)]
    crowd, *_ = await asyncio.gather(
        collect(subject.engine.submit(request(prompt, hot, salt="another cache"))),
        *(collect(subject.engine.submit(other)) for other in noise),
    )
    assert {i: alone.tokens(i) for i in range(3)} == {i: crowd.tokens(i) for i in range(3)}
    assert len({tuple(alone.tokens(i)) for i in range(3)}) == 3
    elsewhere = await ship(subject, prompt, hot)
    assert {i: elsewhere.tokens(i) for i in range(3)} == {i: alone.tokens(i) for i in range(3)}


async def test_logprobs_of_prompt_and_answer_are_the_references(subject: Subject) -> None:
    import torch

    prompt = subject.prompt(700, seed=14)
    answer = await collect(subject.engine.submit(request(prompt, replace(GREEDY, max_tokens=3, logprobs=4, prompt_logprobs=1))))
    with torch.inference_mode():
        ids = torch.tensor([[*prompt, *answer.tokens()]])
        expected = torch.log_softmax(reference.reference_model(subject.source)(ids).logits[0].float(), dim=-1)
    for output in answer.outputs[0]:
        row = expected[len(prompt) - 1 + output.position]
        assert output.logprob is not None
        assert math.isclose(output.logprob, float(row[output.token_id]), abs_tol=2e-3)
        assert [t.token_id for t in output.top_logprobs] == torch.topk(row, 4).indices.tolist()
    scored = answer.outputs[0][0].prompt_logprobs
    assert scored is not None
    assert len(scored) == len(prompt) - 1
    for position, entry in enumerate(scored):
        assert entry[0].token_id == prompt[position + 1]
        assert math.isclose(entry[0].logprob, float(expected[position, prompt[position + 1]]), abs_tol=2e-3)


async def test_constrained_answers_parse(subject: Subject) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "size": {"enum": [1, 2, 3]}, "tag": {"type": "string", "maxLength": 8}},
        "required": ["ok", "size", "tag"],
        "additionalProperties": False,
    }
    grammar = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))
    text = load_text_model(subject.source)
    prompt = text.encode("Answer in JSON.", add_special_tokens=False)
    for sampling in (
        SamplingParams(temperature=0.0, max_tokens=300, grammar=grammar),
        SamplingParams(temperature=1.0, seed=3, n=2, max_tokens=300, grammar=grammar),
    ):
        local = await collect(subject.engine.submit(request(prompt, sampling)))
        landed = await ship(subject, prompt, sampling)
        for index in range(sampling.n):
            document = json.loads(text.decode(local.tokens(index)))
            assert set(document) == {"ok", "size", "tag"}
            assert isinstance(document["ok"], bool)
            assert document["size"] in (1, 2, 3)
            assert local.outputs[index][-1].finish_reason is FinishReason.STOP
            assert landed.tokens(index) == local.tokens(index)


async def test_an_unusable_grammar_is_refused_before_anything_is_computed(subject: Subject) -> None:
    broken = replace(GREEDY, grammar=Grammar(GrammarKind.REGEX, "("))
    with pytest.raises(InvalidRequest, match="response_format"):
        subject.engine.submit(request((11, 12), broken))
    with pytest.raises(InvalidRequest, match="response_format"):
        await subject.engine.reserve(request((11, 12), broken), timeout_s=1.0)


async def test_settings_reach_the_engine(tmp_path: Path) -> None:
    import torch

    write_tiny_model("tiny-kimi-linear", tmp_path / "m")
    settings = EngineSettings(device="cpu", num_threads=1, max_context_tokens=100, cache_bytes=32 * 1024**2)
    before = torch.get_num_threads()
    try:
        engine = build_engine(
            settings, source=str(tmp_path / "m"), served_name="mine", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock()
        )
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert engine.spec.name == "mine"
    with pytest.raises(PromptTooLong, match="at most 99"):
        engine.submit(request(tuple(range(100))))
    await engine.close()
