"""The running engine over the emulated backend: generate, export, landing, and how each of them ends."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from prfaas.clock import ManualClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Admitted, EngineEvent, EngineStream, Finished, Landing, LayersReady, TokensOut
from prfaas.engine.backend import LayerHook
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.loop import LoopedEngine
from prfaas.errors import (
    DeadlineExceeded,
    Draining,
    EngineFailed,
    InvalidRequest,
    OutOfBlocks,
    PromptTooLong,
    QueueFull,
    RequestCancelled,
    TransferGone,
)
from prfaas.modelspec import GroupKind, KvRange, ModelSpec
from prfaas.planner.profile import Curve, HardwareProfile
from prfaas.sched.plan import StepPlan, StepResult
from prfaas.types import FinishReason, GenerationRequest, RequestId, SamplingParams, TokenOutput
from tests.support.tiny_specs import INSTANT, SHAPES, emulated_engine, pool_sizes, tiny_spec

ANSWER = 10


def ask(tokens: list[int], *, name: str = "r", priority: int = 0, **sampling: object) -> GenerationRequest:
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": ANSWER, "ignore_eos": True, **sampling})  # type: ignore[arg-type]
    return GenerationRequest(RequestId(name), "tiny", tuple(tokens), params, priority)


def prompt(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1, 1000), k=length)


async def drain(stream: EngineStream) -> list[EngineEvent]:
    async with asyncio.timeout(20):
        return [event async for event in stream.events()]


def answers(events: list[EngineEvent], index: int = 0) -> list[int]:
    outputs = [o for event in events if isinstance(event, TokensOut) for o in event.outputs if o.index == index]
    assert [o.position for o in outputs] == list(range(len(outputs)))
    return [o.token_id for o in outputs]


def assert_nothing_held(engine: LoopedEngine) -> None:
    engine._core.check_integrity()
    held = engine.counters()
    names = ("blocks_used", "slots_used", "sequences_running", "sequences_waiting", "landings", "exports_pinned")
    assert {name: held[name] for name in names} == dict.fromkeys(names, 0)


def assert_opened(gate: threading.Event) -> None:
    assert gate.wait(20)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def transfer(source: EngineStream, landing: Landing, spec: ModelSpec, num_tokens: int) -> list[TokenOutput]:
    """Carry an export into a landing range by range, as the transport does, and return the first tokens."""
    first: list[TokenOutput] = []
    async for event in source.events():
        if isinstance(event, TokensOut):
            first.extend(event.outputs)
        if not isinstance(event, LayersReady):
            continue
        for group in spec.cache.groups:
            layers = [i for i, layer in enumerate(group.layers) if event.layer_start <= layer < event.layer_stop]
            start, stop = max(event.token_start, landing.held_tokens, group.first_needed_token(num_tokens)), event.token_stop
            if group.kind is GroupKind.STATE:
                start = stop
            if not layers or start > stop or (start == stop and not (group.is_state and stop == num_tokens)):
                continue
            wanted = KvRange(group.name, layers[0], layers[-1] + 1, start, stop)
            landing.write(wanted, source.read(wanted), [tensor.dtype for tensor in group.tensors])
    return first


async def truth(spec: ModelSpec, request: GenerationRequest) -> list[EngineEvent]:
    """What one engine with an empty cache answers."""
    engine = emulated_engine(spec, blocks=256)
    try:
        return await drain(engine.submit(request))
    finally:
        await engine.close()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 37, 64])
async def test_generate_ends_well_and_frees_everything(shape: str, length: int) -> None:
    engine = emulated_engine(tiny_spec(shape))
    events = await drain(engine.submit(ask(prompt(length))))
    assert isinstance(events[0], Admitted)
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.prompt_tokens == length
    assert events[-1].usage.completion_tokens == ANSWER == len(answers(events))
    last = [event for event in events if isinstance(event, TokensOut)][-1].outputs[0]
    assert last.finish_reason is FinishReason.LENGTH
    assert_nothing_held(engine)
    await engine.close()


@pytest.mark.parametrize("shape", SHAPES)
async def test_answers_do_not_depend_on_the_batch(shape: str) -> None:
    spec = tiny_spec(shape)
    requests = [ask(prompt(5 + 9 * i, seed=i), name=str(i)) for i in range(8)]
    engine = emulated_engine(spec, blocks=40, slots=6)
    together = await asyncio.gather(*(drain(engine.submit(request)) for request in requests))
    assert_nothing_held(engine)
    await engine.close()
    for request, events in zip(requests, together, strict=True):
        assert answers(events) == answers(await truth(spec, request))


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_next_turn_finds_prompt_and_answer(shape: str) -> None:
    spec = tiny_spec(shape)
    engine = emulated_engine(spec)
    first = ask(prompt(13))
    answer = answers(await drain(engine.submit(first)))
    second = ask([*first.tokens, *answer, *prompt(5, seed=9)])
    expected = (13 + ANSWER - 1) // 4 * 4  # the last token of an answer is not computed
    assert engine.match(second) == expected
    events = await drain(engine.submit(second))
    assert isinstance(events[0], Admitted)
    assert events[0].cached_tokens == expected
    assert answers(events) == answers(await truth(spec, second))
    assert_nothing_held(engine)
    await engine.close()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("length", [1, 4, 33, 64])
async def test_a_landed_cache_decodes_like_a_local_one(shape: str, length: int) -> None:
    spec = tiny_spec(shape)
    prefiller, decoder = emulated_engine(spec), emulated_engine(spec)
    request = ask(prompt(length), n=2, temperature=1.0, seed=5)
    landing = await decoder.reserve(request, timeout_s=5)
    source = prefiller.submit(request, export=True)
    first = await transfer(source, landing, spec, length)
    assert prefiller.counters()["exports_pinned"] == 1
    stream = landing.commit(first)
    source.release()
    events, expected = await drain(stream), await truth(spec, request)
    for index in (0, 1):
        assert answers(events, index) == answers(expected, index)
    assert answers(events, 0) != answers(events, 1)
    assert_nothing_held(prefiller)
    assert_nothing_held(decoder)
    await prefiller.close()
    await decoder.close()


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_landing_takes_only_what_is_missing(shape: str) -> None:
    spec = tiny_spec(shape)
    prefiller, decoder = emulated_engine(spec), emulated_engine(spec)
    first = ask(prompt(30))
    answer = answers(await drain(decoder.submit(first)))
    second = ask([*first.tokens, *answer, *prompt(9, seed=3)])
    landing = await decoder.reserve(second, timeout_s=5)
    assert landing.held_tokens == (30 + ANSWER - 1) // 4 * 4
    source = prefiller.submit(second, export=True)
    tokens = await transfer(source, landing, spec, len(second.tokens))
    events = await drain(landing.commit(tokens))
    source.release()
    assert answers(events) == answers(await truth(spec, second))
    for engine in (prefiller, decoder):
        assert_nothing_held(engine)
        await engine.close()


async def test_a_damaged_byte_shows_as_a_wrong_token() -> None:
    spec = tiny_spec("kimi")
    prefiller, decoder = emulated_engine(spec), emulated_engine(spec)
    request = ask(prompt(20))
    landing = await decoder.reserve(request, timeout_s=5)
    source = prefiller.submit(request, export=True)
    first = await transfer(source, landing, spec, 20)
    wanted = KvRange("mla", 0, 1, 7, 8)
    payload = bytearray(source.read(wanted))
    payload[11] ^= 1
    landing.write(wanted, memoryview(payload), [tensor.dtype for tensor in spec.cache.group("mla").tensors])
    wrong = answers(await drain(landing.commit(first)))
    source.release()
    right = answers(await truth(spec, request))
    assert wrong[0] == right[0]
    assert wrong[1:] != right[1:]
    await prefiller.close()
    await decoder.close()


async def test_samples_share_one_prefill_and_differ() -> None:
    spec = tiny_spec("everything")
    engine = emulated_engine(spec)
    events = await drain(engine.submit(ask(prompt(21), n=3, temperature=0.7, seed=11)))
    texts = [answers(events, index) for index in range(3)]
    assert len({tuple(text) for text in texts}) == 3
    usage = events[-1]
    assert isinstance(usage, Finished)
    assert usage.usage.completion_tokens == 3 * ANSWER
    assert_nothing_held(engine)
    await engine.close()


@pytest.mark.parametrize("export", [False, True])
async def test_cancelling_in_mid_step_answers_at_once_and_frees_after_it(export: bool) -> None:
    spec, gate = tiny_spec("kimi"), threading.Event()
    backend = EmulatedBackend(spec, pool_sizes(spec), INSTANT, sleep=lambda _: assert_opened(gate))
    engine = emulated_engine(spec, backend=backend)
    stream = engine.submit(ask(prompt(60)), export=export)
    events = stream.events()
    assert isinstance(await anext(events), Admitted)
    stream.cancel()
    stream.cancel()
    with pytest.raises(RequestCancelled):
        await anext(events)
    assert engine.counters()["blocks_used"] > 0  # the running step still writes to them
    gate.set()
    await until(lambda: engine.counters()["blocks_used"] == 0)
    assert_nothing_held(engine)
    await engine.close()


async def test_a_failing_step_fails_its_sequences_and_the_engine_goes_on() -> None:
    spec = tiny_spec("everything")
    broken = iter([False, True])

    def sleep(_: float) -> None:
        if next(broken, False):
            raise MemoryError("the device is full")

    engine = emulated_engine(spec, backend=EmulatedBackend(spec, pool_sizes(spec), INSTANT, sleep=sleep))
    with pytest.raises(EngineFailed, match="MemoryError"):
        await drain(engine.submit(ask(prompt(30))))
    assert_nothing_held(engine)
    request = ask(prompt(30))
    assert answers(await drain(engine.submit(request))) == answers(await truth(spec, request))
    await engine.close()


class SpoilingBackend(EmulatedBackend):
    """Gives an error for every row of a request with seed 13."""

    def execute(self, plan: StepPlan, on_layer: LayerHook | None) -> StepResult:
        rows = dict(super().execute(plan, on_layer).rows)
        for row in plan.rows:
            if any(draw.params.seed == 13 for draw in row.draws):
                broken = tuple(replace(each, error=EngineFailed("no grammar")) for each in rows[row.sequence_id].drawn)
                rows[row.sequence_id] = replace(rows[row.sequence_id], drawn=broken)
        return StepResult(rows)


@pytest.mark.parametrize("export", [False, True])
async def test_a_row_that_fails_ends_its_own_request_alone(export: bool) -> None:
    spec = tiny_spec("kimi")
    engine = emulated_engine(spec, backend=SpoilingBackend(spec, pool_sizes(spec), INSTANT, sleep=lambda _: None))
    good = [engine.submit(ask(prompt(20, seed), n=2)) for seed in (1, 2)]
    bad = engine.submit(ask(prompt(20, 3), n=3, seed=13), export=export)
    with pytest.raises(EngineFailed, match="no grammar"):
        await drain(bad)
    for stream in good:
        assert len(answers(await drain(stream), index=1)) == ANSWER
    assert_nothing_held(engine)
    await engine.close()


async def test_a_deadline_ends_what_waits_and_what_runs() -> None:
    spec, clock = tiny_spec("kimi"), ManualClock()
    slow = HardwareProfile("slow", Curve((0.0, 1.0), (1.0, 1.0)), Curve((1.0, 2.0), (1.0, 1.0)), 4)
    engine = emulated_engine(spec, clock=clock, backend=EmulatedBackend(spec, pool_sizes(spec), slow, sleep=clock.advance))
    request = replace(ask(prompt(20), max_tokens=200), deadline_s=30.0)
    with pytest.raises(DeadlineExceeded):
        await drain(engine.submit(request))
    assert 30.0 <= clock.now_s() <= 40.0
    assert_nothing_held(engine)
    await engine.close()


async def test_an_export_that_is_kept_past_its_deadline_does_not_keep_the_engine_awake() -> None:
    spec, clock = tiny_spec("kimi"), ManualClock()
    engine = emulated_engine(spec, clock=clock)
    stream = engine.submit(replace(ask(prompt(20)), deadline_s=30.0), export=True)
    await drain(stream)
    assert engine.counters()["exports_pinned"] == 1
    clock.advance(31.0)
    assert engine._core.next_deadline_s() is None
    stream.release()
    assert_nothing_held(engine)
    await engine.close()


async def test_prompt_logprobs_cover_the_prompt_whatever_is_cached() -> None:
    spec = tiny_spec("kimi")
    engine = emulated_engine(spec)
    request = ask(prompt(37), prompt_logprobs=2, logprobs=1)
    for _ in range(2):
        events = await drain(engine.submit(request))
        first = next(event for event in events if isinstance(event, TokensOut)).outputs[0]
        assert first.prompt_logprobs is not None
        assert [entry[0].token_id for entry in first.prompt_logprobs] == list(request.tokens[1:])
        assert {len(entry) for entry in first.prompt_logprobs} == {3}
        assert len(first.top_logprobs) == 1
        assert isinstance(events[-1], Finished)
        assert events[-1].usage.cached_tokens == 0
    await engine.close()


async def test_closing_ends_every_stream() -> None:
    engine = emulated_engine(tiny_spec("kimi"))
    stream = engine.submit(ask(prompt(100), max_tokens=100))
    await engine.close()
    with pytest.raises(RequestCancelled):
        await drain(stream)
    with pytest.raises(Draining):
        engine.submit(ask(prompt(3)))


async def test_an_aborted_landing_leaves_nothing() -> None:
    engine = emulated_engine(tiny_spec("everything"))
    landing = await engine.reserve(ask(prompt(40)), timeout_s=5)
    assert engine.counters()["landings"] == 1
    landing.abort()
    landing.abort()
    assert_nothing_held(engine)
    with pytest.raises(TransferGone):
        landing.write(KvRange("mla", 0, 1, 0, 1), memoryview(b"x" * 22), [])
    with pytest.raises(TransferGone):
        landing.commit([])
    await engine.close()


async def test_reserve_waits_for_room_and_gives_up_in_time() -> None:
    engine = emulated_engine(tiny_spec("kimi"), blocks=12)
    first = await engine.reserve(ask(prompt(30)), timeout_s=5)
    with pytest.raises(OutOfBlocks):
        await engine.reserve(ask(prompt(30, seed=1)), timeout_s=0.02)
    waiting = asyncio.create_task(engine.reserve(ask(prompt(30, seed=2)), timeout_s=20))
    await asyncio.sleep(0.01)
    first.abort()
    second = await waiting
    second.abort()
    assert_nothing_held(engine)
    await engine.close()


async def test_refusals_are_typed() -> None:
    settings = EngineSettings(kind="emulated", max_running=1, max_waiting=1, max_step_tokens=16)
    engine = emulated_engine(tiny_spec("kimi"), settings=settings)
    with pytest.raises(InvalidRequest):
        engine.submit(ask([]))
    with pytest.raises(InvalidRequest):
        engine.submit(ask([1000]))
    with pytest.raises(InvalidRequest):
        engine.submit(ask([1], max_tokens=0))
    with pytest.raises(PromptTooLong) as too_long:
        engine.submit(ask(prompt(600)))
    assert too_long.value.detail["excess_tokens"] == 600 + 1 - 512
    with pytest.raises(OutOfBlocks):
        engine.submit(ask(prompt(300)))
    engine.drain()
    with pytest.raises(Draining):
        engine.submit(ask(prompt(3)))
    with pytest.raises(Draining):
        await engine.reserve(ask(prompt(3)), timeout_s=1)
    engine.resume()
    await drain(engine.submit(ask(prompt(3))))
    assert_nothing_held(engine)
    await engine.close()


async def test_a_full_queue_says_when_to_come_back() -> None:
    settings = EngineSettings(kind="emulated", max_running=1, max_waiting=2, max_step_tokens=16)
    engine = emulated_engine(tiny_spec("kimi"), settings=settings)
    holder = await engine.reserve(ask(prompt(220)), timeout_s=5)  # nobody is admitted beside it
    streams = [engine.submit(ask(prompt(60, seed=i))) for i in range(2)]
    with pytest.raises(QueueFull) as full:
        engine.submit(ask(prompt(60, seed=9)))
    assert full.value.retry_after_s is not None
    assert full.value.retry_after_s > 0
    holder.abort()
    for stream in streams:
        await drain(stream)
    await engine.close()
