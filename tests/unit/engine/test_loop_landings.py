"""Caches computed elsewhere: landed, continued, damaged, aborted, and waiting for room."""

from __future__ import annotations

import asyncio

import pytest

from prfaas.errors import OutOfBlocks, TransferGone
from prfaas.modelspec import KvRange
from tests.support.engine_streams import ANSWER, answers, ask, assert_nothing_held, drain, prompt, transfer, truth
from tests.support.tiny_specs import SHAPES, emulated_engine, tiny_spec


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


@pytest.mark.parametrize("sends", [True, False])
async def test_the_turn_after_a_landing_resumes_at_the_boundary_whose_states_came_along(sends: bool) -> None:
    spec = tiny_spec("kimi")
    prefiller, decoder = emulated_engine(spec), emulated_engine(spec)
    for _ in range(2):  # the second time both ends have the prompt cached
        first = ask(prompt(37), max_tokens=3)
        landing, snapshots = await decoder.reserve(first, timeout_s=5), list[int]()
        source = prefiller.submit(first, export=True)
        tokens = await transfer(source, landing, spec, 37, snapshots=snapshots if sends else None)
        answer = answers(await drain(landing.commit(tokens, snapshot_tokens=snapshots[0] if sends else 0)))
        source.release()
        assert snapshots == ([36] if sends else [])
        second = ask([*first.tokens, *answer, *prompt(9, seed=3)])
        assert decoder.match(second) == (36 if sends else 0)
    events = await drain(decoder.submit(second))
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
