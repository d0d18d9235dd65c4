"""The conformance suite: what every PrefillTransport does, whatever carries its frames.

Each check is a coroutine over a Harness that raises AssertionError; `CHECKS` lists them for a test's parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from kv_transport.api import FetchResult, Offer
from kv_transport.testing.harness import NOWHERE, Ends, Harness
from kv_transport.testing.sources import (
    FakeHandler,
    FakeSource,
    KeepingSink,
    Script,
    hybrid_offer,
    order_of,
    source_of,
)
from prfaas.config import TransportSettings
from prfaas.errors import (
    EngineFailed,
    FingerprintMismatch,
    PrfaasError,
    ProtocolViolation,
    QueueFull,
    RequestCancelled,
    WorkerUnreachable,
)
from prfaas.modelspec import DType, Fingerprint, KvRange

Check = Callable[[Harness], Awaitable[None]]

SMALL_CHUNKS = TransportSettings(chunk_bytes=4096, lanes=1)
SETTLE_S = 5.0


async def settled(ends: Ends, *sources: FakeSource) -> None:
    """Wait until every source is released and both ends' accounts are empty; AssertionError when they never are."""
    with suppress(TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            for source in sources:
                await source.was_released.wait()
            while any(_left(ends).values()):  # noqa: ASYNC110 - the accounts are polled, as an operator would
                await asyncio.sleep(0.005)
    assert all(source.released for source in sources), "a source was not released"
    assert not any(_left(ends).values()), f"left behind: {_left(ends)}"


def _left(ends: Ends) -> dict[str, float]:
    names = ("active_transfers", "buffered_bytes", "open_lanes")
    here, there = ends.transport.counters(), ends.sender_counters()
    return {f"receiver {n}": here[n] for n in names} | {f"sender {n}": there[n] for n in names}


async def failure_of(fetch: Awaitable[FetchResult]) -> PrfaasError:
    """The typed error that a fetch raises; AssertionError when it returns."""
    try:
        await fetch
    except PrfaasError as error:
        return error
    raise AssertionError("the fetch returned")


async def refused(ends: Ends, kind: type[PrfaasError], sink: KeepingSink | None = None, tokens: int = 100) -> PrfaasError:
    """Fetch, and return the error, which must be of `kind`."""
    error = await failure_of(ends.transport.fetch(order_of(tokens), ends.address, sink or KeepingSink()))
    assert isinstance(error, kind), f"{type(error).__name__} instead of {kind.__name__}: {error}"
    return error


async def carries_every_byte(harness: Harness) -> None:
    """Cache, first tokens and durations arrive; the source is told that they did."""
    source = source_of(hybrid_offer(tokens=500), step_tokens=128)
    source.script = Script(queue_events=2)
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        sink = KeepingSink()
        result = await ends.transport.fetch(order_of(500), ends.address, sink)
        sink.require(source.contents)
        assert (result.first, result.offer) == (source.first, source.contents.offer)
        assert result.raw_bytes == result.wire_bytes == sum(len(payload) for _, payload in sink.landed)
        assert (result.codec, result.lanes, result.resumes) == ("as_is", 1, 0)
        await settled(ends, source)
        assert source.released == [True]


async def uses_several_lanes(harness: Harness) -> None:
    source = source_of(hybrid_offer(tokens=2000), step_tokens=100)
    async with harness.join(FakeHandler(source), TransportSettings(chunk_bytes=4096, lanes=4)) as ends:
        sink = KeepingSink()
        result = await ends.transport.fetch(order_of(2000), ends.address, sink)
        sink.require(source.contents)
        assert result.lanes == 4
        await settled(ends, source)


async def carries_nothing_when_nothing_is_missing(harness: Harness) -> None:
    source = source_of(replace(hybrid_offer(), groups=()))
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        result = await ends.transport.fetch(order_of(), ends.address, KeepingSink())
        assert result.raw_bytes == 0
        assert result.first == source.first
        await settled(ends, source)


async def carries_only_what_is_offered(harness: Harness) -> None:
    """A held prefix is not resent."""
    source = source_of(hybrid_offer(tokens=300, held=256))
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        sink = KeepingSink()
        await ends.transport.fetch(order_of(300), ends.address, sink)
        sink.require(source.contents)
        assert min(part.token_start for part, _ in sink.landed) == 256
        await settled(ends, source)


async def carries_entries_larger_than_a_chunk(harness: Harness) -> None:
    source = source_of()
    async with harness.join(FakeHandler(source), TransportSettings(chunk_bytes=64, lanes=2)) as ends:
        sink = KeepingSink()
        await ends.transport.fetch(order_of(), ends.address, sink)
        sink.require(source.contents)
        await settled(ends, source)


async def codes_when_both_ends_want_it(harness: Harness) -> None:
    """Lossless comes out exact and smaller, fp8 close and smaller; a receiver that accepts neither gets it as it is."""
    for setting, accepted in (("lossless", ("lossless", "as_is")), ("fp8", ("fp8", "as_is")), ("fp8", ("as_is",))):
        source = source_of(hybrid_offer(tokens=500))
        settings = SMALL_CHUNKS.model_copy(update={"chunk_bytes": 65536, "wire_codec": setting})
        async with harness.join(FakeHandler(source), settings) as ends:
            sink = KeepingSink()
            result = await ends.transport.fetch(order_of(500, codecs=accepted), ends.address, sink)
            assert result.codec == (setting if setting in accepted else "as_is")
            assert (result.wire_bytes < 0.8 * result.raw_bytes) == (setting in accepted)
            if result.codec == "fp8":
                sink.require_close(source.contents)
            else:
                sink.require(source.contents)
            await settled(ends, source)


async def reports_a_refusal(harness: Harness) -> None:
    refusal = QueueFull("full", depth=3, limit=3, retry_after_s=1.5)
    async with harness.join(FakeHandler(error=refusal), SMALL_CHUNKS) as ends:
        error = await refused(ends, QueueFull)
        assert (error.detail["depth"], error.retry_after_s) == (3, 1.5)
        await settled(ends)


async def reports_a_wrong_fingerprint(harness: Harness) -> None:
    """The message names the field and both sides' values."""
    async with harness.join(FakeHandler(), SMALL_CHUNKS) as ends:
        theirs = Fingerprint(model="m2", tokenizer="t1", cache="c1")
        error = await failure_of(ends.transport.fetch(order_of(fingerprint=theirs), ends.address, KeepingSink()))
        assert isinstance(error, FingerprintMismatch)
        assert {error.detail["ours"], error.detail["theirs"]} == {"m1", "m2"}
        await settled(ends)


async def reports_an_absent_sender(harness: Harness) -> None:
    async with harness.join(FakeHandler(), SMALL_CHUNKS) as ends:
        error = await failure_of(ends.transport.fetch(order_of(), NOWHERE, KeepingSink()))
        assert isinstance(error, WorkerUnreachable)
        await settled(ends)


async def reports_a_failing_prefill(harness: Harness) -> None:
    """Wherever it fails: before the first range, in the middle, after the last."""
    for fail_after in (0, 3, 7):
        source = source_of()
        source.script = Script(error=EngineFailed("boom", step=7), fail_after=fail_after)
        async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
            error = await refused(ends, EngineFailed)
            assert (error.message, error.detail["step"]) == ("boom", 7)
            await settled(ends, source)
            assert source.released == [False]


async def refuses_a_lying_source(harness: Harness) -> None:
    """A source that leaves out part of its offer, repeats a part, or reads short."""
    missing, repeating, short = source_of(), source_of(), source_of()
    missing.ranges = missing.ranges[:-1]
    repeating.ranges = [*repeating.ranges[:2], *repeating.ranges]
    short.contents.truncated = True
    for source in (missing, repeating, short):
        async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
            await refused(ends, EngineFailed)
            await settled(ends, source)
            assert source.released == [False]


async def cancels_at_every_stage(harness: Harness) -> None:
    """Cancelled before the first range, in the middle and at the end, the prefill stops and nothing is left."""
    for hang_after in (0, 3, 7):
        source = source_of()
        source.script = Script(hang_after=hang_after)
        async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
            fetch = asyncio.create_task(ends.transport.fetch(order_of(), ends.address, KeepingSink()))
            if hang_after:
                await source.was_read.wait()
            await asyncio.sleep(0.02)
            fetch.cancel()
            with suppress(asyncio.CancelledError):
                await fetch
            assert fetch.cancelled()
            await settled(ends, source)
            assert source.released == [False]
            async with asyncio.timeout(SETTLE_S):
                await source.was_closed.wait()


async def ends_running_fetches_when_closed(harness: Harness) -> None:
    source = source_of()
    source.script = Script(hang_after=2)
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        fetch = asyncio.create_task(ends.transport.fetch(order_of(), ends.address, KeepingSink()))
        await source.was_read.wait()
        await ends.transport.close()
        assert isinstance(await failure_of(fetch), RequestCancelled)
        await settled(ends, source)


class _RefusingSink(KeepingSink):
    def __init__(self, *, at_begin: bool) -> None:
        super().__init__()
        self._at_begin = at_begin

    def begin(self, offer: Offer) -> None:
        if self._at_begin:
            raise ProtocolViolation("this does not complete what is held")

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        raise EngineFailed("no such block")


async def reports_what_the_sink_refuses(harness: Harness) -> None:
    for at_begin, kind in ((True, ProtocolViolation), (False, EngineFailed)):
        source = source_of()
        async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
            await refused(ends, kind, _RefusingSink(at_begin=at_begin))
            await settled(ends, source)
            assert source.released == [False]


async def refuses_a_manifest_for_another_prompt(harness: Harness) -> None:
    source = source_of(hybrid_offer(tokens=100))
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        await refused(ends, ProtocolViolation, tokens=101)
        await settled(ends, source)


async def runs_transfers_side_by_side(harness: Harness) -> None:
    sources = [source_of(hybrid_offer(tokens=100 + 50 * i), step_tokens=32, seed=i) for i in range(12)]
    async with harness.join(FakeHandler(*sources), TransportSettings(chunk_bytes=4096, lanes=2)) as ends:
        sinks = [KeepingSink() for _ in sources]
        orders = [order_of(100 + 50 * i, request_id=f"r{i}") for i in range(12)]
        fetches = (ends.transport.fetch(o, ends.address, s) for o, s in zip(orders, sinks, strict=True))
        for result, sink in zip(await asyncio.gather(*fetches), sinks, strict=True):
            source = next(s for s in sources if s.contents.offer == result.offer)
            sink.require(source.contents)
        await settled(ends, *sources)


async def knows_its_links(harness: Harness) -> None:
    source = source_of()
    async with harness.join(FakeHandler(source), SMALL_CHUNKS) as ends:
        assert ends.transport.links() == ()
        await ends.transport.fetch(order_of(), ends.address, KeepingSink())
        await settled(ends, source)
        (view,) = ends.transport.links()
        assert (view.src, view.dst) == ("east", "west")
        assert (view.active_transfers, view.queued_bytes) == (0, 0)


CHECKS: tuple[Check, ...] = (
    carries_every_byte,
    uses_several_lanes,
    carries_nothing_when_nothing_is_missing,
    carries_only_what_is_offered,
    carries_entries_larger_than_a_chunk,
    codes_when_both_ends_want_it,
    reports_a_refusal,
    reports_a_wrong_fingerprint,
    reports_an_absent_sender,
    reports_a_failing_prefill,
    refuses_a_lying_source,
    cancels_at_every_stage,
    ends_running_fetches_when_closed,
    reports_what_the_sink_refuses,
    refuses_a_manifest_for_another_prompt,
    runs_transfers_side_by_side,
    knows_its_links,
)
