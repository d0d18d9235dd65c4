"""An order becomes an export; the export's events become what a transfer may send."""

from __future__ import annotations

import dataclasses

import pytest

from kv_transport.api import FirstTokens, Offer, PrefillOrder, Queued, RangeReady, SourceEvent
from prefill_service.service import PrefillService
from prfaas.engine.api import Admitted, Finished, LayersReady, TokensOut
from prfaas.errors import Draining, EngineFailed, FingerprintMismatch, InvalidRequest, PrfaasError, QueueFull
from prfaas.metrics import WASTED_TOKENS, Emitter, MetricSet
from prfaas.modelspec import Fingerprint, KvRange
from prfaas.types import SamplingParams, SiteId, Usage, WorkerId, WorkerLoad
from prfaas.worker.gate import Gate
from tests.support.scripted import SPEC, ScriptedEngine, ScriptedStream, make_request, token


def order(held_tokens: int = 4, fingerprint: Fingerprint = SPEC.fingerprint, n: int = 1) -> PrefillOrder:
    request = make_request(10, sampling=SamplingParams(max_tokens=5, min_tokens=2, n=n, temperature=0.5))
    return PrefillOrder(
        request=request,
        fingerprint=fingerprint,
        held_tokens=held_tokens,
        codecs=("as_is",),
        receiver=WorkerId("d1"),
        receiver_site=SiteId("pd"),
    )


EXPORT = [
    Admitted(cached_tokens=8, queue_s=0.25),
    LayersReady(0, 1, 8, 10),
    LayersReady(1, 2, 8, 10),
    TokensOut((token(0),), prefill_s=0.5),
    Finished(Usage(10, 1, 8)),
]


class Bench:
    """A service over a scripted engine."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.engine = engine
        self.gate = Gate("prefill")
        self.gate.open()
        self.metrics = MetricSet(Emitter.WORKER)
        self.service = PrefillService(engine, self.metrics, self.gate.admit)

    def wasted(self) -> float:
        return self.metrics.registry.get_sample_value(WASTED_TOKENS.name) or 0.0


async def play(bench: Bench, asked: PrefillOrder) -> list[SourceEvent]:
    source = await bench.service.open(asked)
    return [event async for event in source.events()]


async def test_an_export_becomes_an_offer_ranges_and_first_tokens() -> None:
    events = await play(Bench(ScriptedEngine(ScriptedStream(EXPORT))), order())
    offer = events[0]
    assert isinstance(offer, Offer)
    assert (offer.num_tokens, offer.cached_tokens) == (10, 8)
    assert [(p.token_start, p.token_stop, p.state_positions) for p in offer.groups] == [(4, 10, ()), (10, 10, (10,))]
    assert events[1:] == [
        RangeReady(KvRange("full", 0, 1, 4, 8)),
        RangeReady(KvRange("full", 0, 1, 8, 10)),
        RangeReady(KvRange("state", 0, 1, 10, 10)),
        FirstTokens((token(0),), queue_s=0.25, prefill_s=0.5),
    ]


async def test_the_engine_gets_the_clients_own_request() -> None:
    engine = ScriptedEngine(ScriptedStream(EXPORT))
    asked = order()
    await play(Bench(engine), asked)
    assert engine.exported == [asked.request]
    assert engine.submitted == []


async def test_a_busy_engine_says_how_long_the_queue_is() -> None:
    engine = ScriptedEngine(ScriptedStream(EXPORT))
    engine.now = WorkerLoad(waiting=3, waiting_prefill_tokens=500, prefill_tokens_per_s=1000.0)
    events = await play(Bench(engine), order())
    assert events[0] == Queued(position=3, eta_s=0.5)


async def test_other_weights_are_refused_before_anything_is_queued() -> None:
    bench = Bench(ScriptedEngine())
    theirs = dataclasses.replace(SPEC.fingerprint, model="other")
    with pytest.raises(FingerprintMismatch):
        await bench.service.open(order(fingerprint=theirs))
    assert bench.engine.exported == []
    assert bench.gate.inside == 0


@pytest.mark.parametrize("held_tokens", [-1, 10, 11])
async def test_a_receiver_cannot_hold_everything_or_less_than_nothing(held_tokens: int) -> None:
    bench = Bench(ScriptedEngine())
    with pytest.raises(InvalidRequest) as caught:
        await bench.service.open(order(held_tokens=held_tokens))
    assert caught.value.param == "held_tokens"
    assert bench.gate.inside == 0


async def test_a_full_queue_is_the_engines_error() -> None:
    bench = Bench(ScriptedEngine(refuse=QueueFull("full", retry_after_s=1.0)))
    with pytest.raises(QueueFull):
        await bench.service.open(order())
    assert bench.gate.inside == 0


async def test_what_the_engine_cannot_honour_is_refused_before_anything_is_queued() -> None:
    bench = Bench(ScriptedEngine(unusable=InvalidRequest("no such grammar", param="response_format")))
    with pytest.raises(InvalidRequest, match="no such grammar"):
        await bench.service.open(order())
    assert bench.gate.inside == 0
    assert bench.engine.exported == []


async def test_a_closed_door_refuses() -> None:
    bench = Bench(ScriptedEngine())
    bench.gate.close()
    with pytest.raises(Draining):
        await bench.service.open(order())
    assert bench.engine.exported == []


async def test_release_frees_once_and_leaves_the_door() -> None:
    stream = ScriptedStream(EXPORT)
    bench = Bench(ScriptedEngine(stream))
    source = await bench.service.open(order())
    assert bench.gate.inside == 1
    async for _ in source.events():
        pass
    assert bench.gate.inside == 1
    source.release(committed=True)
    source.release(committed=False)
    assert stream.released >= 1
    assert bench.gate.inside == 0
    assert bench.wasted() == 0


async def test_what_nobody_took_is_counted_as_wasted() -> None:
    bench = Bench(ScriptedEngine(ScriptedStream(EXPORT)))
    source = await bench.service.open(order())
    async for _ in source.events():
        pass
    source.release(committed=False)
    assert bench.wasted() == 2  # 10 prompt tokens, 8 of them cached


async def test_reads_go_to_the_engine() -> None:
    stream = ScriptedStream(EXPORT)
    source = await Bench(ScriptedEngine(stream)).service.open(order())
    wanted = KvRange("full", 0, 1, 4, 8)
    assert len(source.read(wanted)) == 16
    assert stream.reads == [wanted]


@pytest.mark.parametrize(
    "script",
    [
        EXPORT[:1] + EXPORT[3:],  # layers missing
        EXPORT[:3] + EXPORT[4:],  # no tokens
        [*EXPORT[:3], TokensOut((token(0), token(0, index=1)), prefill_s=0.5)],  # a token too many
        [*EXPORT[:3], TokensOut((token(0),))],  # no compute time
    ],
)
async def test_an_export_that_breaks_its_promise_fails(script: list[object]) -> None:
    bench = Bench(ScriptedEngine(ScriptedStream(script)))  # type: ignore[arg-type]
    with pytest.raises(EngineFailed):
        await play(bench, order())


async def test_the_engines_failure_is_the_sources() -> None:
    failure: PrfaasError = EngineFailed("step failed")
    bench = Bench(ScriptedEngine(ScriptedStream([*EXPORT[:2], failure])))
    with pytest.raises(EngineFailed, match="step failed"):
        await play(bench, order())


async def test_all_samples_first_tokens_come_together() -> None:
    outputs = (token(0, 7, 0), token(0, 9, 1))
    script = [*EXPORT[:3], TokensOut(outputs, prefill_s=0.5), EXPORT[-1]]
    events = await play(Bench(ScriptedEngine(ScriptedStream(script))), order(n=2))
    assert events[-1] == FirstTokens(outputs, queue_s=0.25, prefill_s=0.5)
