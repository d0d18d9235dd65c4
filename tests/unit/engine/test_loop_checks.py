"""Checking a request's parameters: off the event loop where it takes long, bounded, and typed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from prfaas.engine import loop as engine_loop
from prfaas.engine.emulated import EmulatedBackend
from prfaas.errors import Draining, InvalidRequest, QueueFull
from prfaas.types import GenerationRequest, Grammar, GrammarKind, SamplingParams
from tests.support.engine_streams import ask, prompt
from tests.support.tiny_specs import INSTANT, emulated_engine, pool_sizes, tiny_spec


class SlowChecks(EmulatedBackend):
    """Takes as long for a grammar as the test wants."""

    def __init__(self, wait: Callable[[], object]) -> None:
        spec = tiny_spec("kimi")
        super().__init__(spec, pool_sizes(spec), INSTANT, sleep=lambda _: None)
        self._checking = wait

    def check(self, params: SamplingParams) -> None:
        if params.grammar is not None:
            self._checking()


def constrained() -> GenerationRequest:
    request = ask(prompt(5))
    return replace(request, sampling=replace(request.sampling, grammar=Grammar(GrammarKind.JSON_OBJECT)))


async def test_a_slow_grammar_leaves_the_event_loop_free() -> None:
    gate, threads = threading.Event(), set[int]()

    def wait() -> None:
        threads.add(threading.get_ident())
        assert gate.wait(20)

    engine = emulated_engine(tiny_spec("kimi"), backend=SlowChecks(wait))
    checking = asyncio.create_task(engine.check(constrained()))
    await engine.check(ask(prompt(5)))  # one without a grammar does not wait for it
    gate.set()
    await checking
    assert threads
    assert threading.get_ident() not in threads
    await engine.close()


async def test_a_grammar_that_takes_too_long_is_refused_and_so_is_who_waits_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_loop, "CHECK_S", 0.05)
    gate = threading.Event()
    engine = emulated_engine(tiny_spec("kimi"), backend=SlowChecks(lambda: gate.wait(20)))
    first, second = await asyncio.gather(engine.check(constrained()), engine.check(constrained()), return_exceptions=True)
    assert isinstance(first, InvalidRequest)
    assert first.param == "response_format"
    assert isinstance(second, QueueFull)
    assert second.retry_after_s is not None
    gate.set()
    await engine.check(constrained())
    await engine.close()


async def test_an_emulated_engine_refuses_a_grammar_and_a_closed_one_everything() -> None:
    engine = emulated_engine(tiny_spec("kimi"))
    with pytest.raises(InvalidRequest, match="no text"):
        await engine.check(constrained())
    await engine.close()
    with pytest.raises(Draining):
        await engine.check(constrained())
