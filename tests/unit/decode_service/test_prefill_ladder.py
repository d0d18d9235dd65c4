"""Every rung is tried in order, every failure is written down, and whatever happens nothing stays reserved."""

from __future__ import annotations

import asyncio

import pytest

from decode_service.deadline import Deadline
from decode_service.ladder import LadderTerms, Prefilled, PrefillLadder
from prfaas.clock import ManualClock
from prfaas.errors import (
    DigestMismatch,
    InvalidRequest,
    OutOfBlocks,
    PrfaasError,
    QueueFull,
    RequestCancelled,
    TransferBroken,
    WorkerUnreachable,
)
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import Decision, GenerationRequest, PrefillCandidate, Route, SamplingParams, SiteId, WorkerId
from tests.support.scripted import ScriptedEngine, ScriptedTransport, deliver, full_offer, make_request, token

FAR = PrefillCandidate(WorkerId("far"), SiteId("prefill-dc"), "far:1", Route.REMOTE)
NEAR = PrefillCandidate(WorkerId("near"), SiteId("pd-dc"), "near:1", Route.LOCAL)


def decide(*candidates: PrefillCandidate) -> Decision:
    return Decision(
        decode_worker=WorkerId("d1"),
        decode_address="d1:1",
        route=candidates[0].route if candidates else Route.INLINE,
        candidates=candidates,
        reasons=(),
        uncached_tokens=10,
        threshold_tokens=5,
    )


class Bench:
    """A ladder over a scripted engine and transport."""

    def __init__(self, *outcomes: object, engine: ScriptedEngine | None = None, attempt_timeout_s: float = 60.0) -> None:
        self.engine = engine or ScriptedEngine()
        self.transport = ScriptedTransport(*outcomes)  # type: ignore[arg-type]
        self.metrics = MetricSet(Emitter.WORKER)
        self.clock = ManualClock()
        terms = LadderTerms(WorkerId("d1"), SiteId("pd-dc"), attempt_timeout_s, codecs=("fp8", "as_is"), max_lanes=3)
        self.ladder = PrefillLadder(self.engine, self.transport, terms, self.metrics, self.clock)

    async def prefill(self, *candidates: PrefillCandidate, request: GenerationRequest | None = None) -> Prefilled:
        asked = request or make_request(10)
        return await self.ladder.prefill(asked, decide(*candidates), Deadline(self.clock, asked.deadline_s))

    def failures(self, route: Route, reason: str) -> float:
        labels = {"route": route.value, "reason": reason}
        return self.metrics.registry.get_sample_value("prfaas_prefill_rungs_failed_total", labels) or 0.0


async def test_without_candidates_the_prompt_is_prefilled_here() -> None:
    bench = Bench()
    prefilled = await bench.prefill()
    assert prefilled.report is None
    assert prefilled.attempts == ()
    assert [r.tokens for r in bench.engine.submitted] == [make_request(10).tokens]
    assert bench.engine.landings == []
    assert bench.transport.orders == []


async def test_a_transfer_is_committed_and_measured() -> None:
    bench = Bench(deliver(cached_tokens=8))
    prefilled = await bench.prefill(FAR)
    assert prefilled.stream is bench.engine.stream
    report = prefilled.report
    assert report is not None
    assert (report.route, report.worker_id, report.attempts) == (Route.REMOTE, "far", ())
    assert (report.queue_s, report.prefill_s, report.wire_s, report.commit_s) == (0.125, 0.75, 0.5, 0.0)
    assert (report.kv_bytes, report.cached_tokens) == (120, 8)
    (landing,) = bench.engine.landings
    assert landing.committed == (token(0),)
    assert landing.aborted == 0
    assert bench.engine.submitted == []


async def test_the_order_says_what_is_held_and_who_asks() -> None:
    bench = Bench(deliver())
    await bench.prefill(FAR)
    (order,) = bench.transport.orders
    assert bench.transport.addresses == ["far:1"]
    assert (order.held_tokens, order.receiver, order.receiver_site) == (4, "d1", "pd-dc")
    assert (order.codecs, order.max_lanes) == (("fp8", "as_is"), 3)
    assert order.fingerprint == bench.engine.spec.fingerprint


async def test_what_is_held_here_counts_as_cached_even_when_the_sender_computed_it() -> None:
    report = (await Bench(deliver(cached_tokens=0)).prefill(FAR)).report
    assert report is not None
    assert report.cached_tokens == 4


async def test_the_next_candidate_follows_a_failed_one() -> None:
    bench = Bench(WorkerUnreachable("gone"), deliver())
    prefilled = await bench.prefill(FAR, NEAR)
    assert bench.transport.addresses == ["far:1", "near:1"]
    assert prefilled.report is not None
    assert (prefilled.report.route, prefilled.report.attempts) == (Route.LOCAL, ("far:worker_unreachable",))
    assert bench.failures(Route.REMOTE, "worker_unreachable") == 1


async def test_the_last_rung_is_here_with_nothing_left_reserved() -> None:
    bench = Bench(WorkerUnreachable("gone"), QueueFull("busy"))
    prefilled = await bench.prefill(FAR, NEAR)
    assert prefilled.report is None
    assert prefilled.attempts == ("far:worker_unreachable", "near:queue_full")
    (landing,) = bench.engine.landings
    assert (landing.aborted, landing.committed) == (1, None)
    assert len(bench.engine.submitted) == 1


@pytest.mark.parametrize("error", [TransferBroken("cut"), DigestMismatch("bits")])
async def test_a_bad_way_is_worth_a_second_try_at_the_same_worker(error: PrfaasError) -> None:
    bench = Bench(error, deliver())
    prefilled = await bench.prefill(FAR, NEAR)
    assert bench.transport.addresses == ["far:1", "far:1"]
    assert prefilled.attempts == (f"far:{error.code}",)


async def test_a_second_failure_of_the_way_goes_on_to_the_next() -> None:
    bench = Bench(TransferBroken("cut"), TransferBroken("cut"), deliver())
    prefilled = await bench.prefill(FAR, NEAR)
    assert bench.transport.addresses == ["far:1", "far:1", "near:1"]
    assert prefilled.attempts == ("far:transfer_broken", "far:transfer_broken")
    assert bench.failures(Route.REMOTE, "transfer_broken") == 2


async def test_a_sender_that_cancels_is_a_failed_rung_not_a_cancelled_request() -> None:
    bench = Bench(RequestCancelled("shutting down"))
    prefilled = await bench.prefill(FAR)
    assert prefilled.attempts == ("far:cancelled",)
    assert len(bench.engine.submitted) == 1


async def test_a_rung_that_takes_too_long_is_left() -> None:
    bench = Bench(None, attempt_timeout_s=0.01)
    prefilled = await bench.prefill(FAR)
    assert prefilled.attempts == ("far:deadline_exceeded",)
    assert bench.transport.cancelled == 1
    assert bench.engine.landings[0].aborted == 1


async def test_each_rung_gets_what_is_left_of_the_requests_time() -> None:
    bench = Bench()
    deadline = Deadline(bench.clock, 10.0)
    bench.clock.advance(4.0)
    await bench.ladder.prefill(make_request(10, deadline_s=10.0), decide(), deadline)
    assert bench.engine.submitted[0].deadline_s == 6.0


async def test_cancelling_stops_the_transfer_and_frees_the_room() -> None:
    bench = Bench(None)
    task = asyncio.create_task(bench.prefill(FAR, NEAR))
    await bench.transport.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert bench.transport.cancelled == 1
    assert bench.engine.landings[0].aborted == 1
    assert bench.engine.submitted == []


async def test_what_the_engine_cannot_honour_never_reaches_a_candidate() -> None:
    bench = Bench(deliver(), engine=ScriptedEngine(unusable=InvalidRequest("no such grammar", param="response_format")))
    with pytest.raises(InvalidRequest, match="no such grammar"):
        await bench.prefill(FAR)
    assert bench.transport.orders == []
    assert bench.engine.reserved == []


async def test_no_room_here_is_the_requests_error_not_a_rungs() -> None:
    bench = Bench(deliver(), engine=ScriptedEngine(refuse=OutOfBlocks("full")))
    with pytest.raises(OutOfBlocks):
        await bench.prefill(FAR)
    assert bench.transport.orders == []


async def test_first_tokens_must_be_one_for_each_sample() -> None:
    request = make_request(10, sampling=SamplingParams(n=2))
    bench = Bench(deliver(token(0)), deliver(token(0, 7, 0), token(0, 9, 1)))
    prefilled = await bench.prefill(FAR, NEAR, request=request)
    assert prefilled.attempts == ("far:protocol_violation",)
    assert bench.engine.landings[0].committed == (token(0, 7, 0), token(0, 9, 1))


async def test_an_offer_that_does_not_fit_is_a_failed_rung() -> None:
    def wrong(order: object, sink: object) -> object:
        sink.begin(full_offer(10, 0))  # type: ignore[attr-defined]
        raise AssertionError("the sink takes an offer that overwrites what is held")

    bench = Bench(wrong)
    prefilled = await bench.prefill(FAR)
    assert prefilled.attempts == ("far:protocol_violation",)
