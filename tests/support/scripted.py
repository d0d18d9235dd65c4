"""An engine and a transport that do what a test tells them, and remember what was asked of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from kv_transport.api import FetchResult, FirstTokens, GroupPlan, Offer, PrefillOrder, Sink
from prfaas.engine.api import Admitted, EngineEvent, Finished, TokensOut
from prfaas.errors import PrfaasError
from prfaas.modelspec import CacheGroup, CacheSpec, DType, Fingerprint, GroupKind, KvRange, ModelSpec, TensorSpec
from prfaas.types import CacheEvent, GenerationRequest, LinkView, RequestId, TokenOutput, Usage, WorkerLoad

ENTRY = (TensorSpec("kv", (4,), DType.F32),)
SPEC = ModelSpec(
    name="scripted",
    architecture="none",
    vocab_size=100,
    num_layers=2,
    max_context_tokens=1000,
    cache=CacheSpec(
        groups=(CacheGroup("full", GroupKind.FULL, (0,), ENTRY), CacheGroup("state", GroupKind.STATE, (1,), ENTRY)),
        block_tokens=4,
    ),
    eos_token_ids=(0,),
    fingerprint=Fingerprint(model="m", tokenizer="t", cache="c"),
)


def make_request(num_tokens: int = 10, **changes: object) -> GenerationRequest:
    """A request whose prompt is 1, 2, 3, ..."""
    fields: dict[str, object] = {"request_id": RequestId("r1"), "model": "scripted", "tokens": tuple(range(1, num_tokens + 1))}
    return GenerationRequest(**{**fields, **changes})  # type: ignore[arg-type]


def token(position: int, token_id: int = 7, index: int = 0) -> TokenOutput:
    return TokenOutput(index=index, position=position, token_id=token_id)


def story(*token_ids: int, cached_tokens: int = 0, queue_s: float = 0.25, prefill_s: float = 0.5) -> list[EngineEvent]:
    """What an engine reports of a request that ends well."""
    events: list[EngineEvent] = [Admitted(cached_tokens=cached_tokens, queue_s=queue_s)]
    for position, token_id in enumerate(token_ids):
        events.append(TokensOut((token(position, token_id),), prefill_s=prefill_s if position == 0 else None))
    events.append(Finished(Usage(prompt_tokens=10, completion_tokens=len(token_ids), cached_tokens=cached_tokens)))
    return events


class ScriptedStream:
    """Plays events; an exception among them is raised, an asyncio.Event is waited for."""

    def __init__(self, script: Sequence[EngineEvent | PrfaasError | asyncio.Event]) -> None:
        self.script = list(script)
        self.cancelled = 0
        self.released = 0
        self.reads: list[KvRange] = []

    async def events(self) -> AsyncIterator[EngineEvent]:
        for item in self.script:
            if isinstance(item, PrfaasError):
                raise item
            if isinstance(item, asyncio.Event):
                await item.wait()
            else:
                yield item

    def cancel(self) -> None:
        self.cancelled += 1

    def read(self, wanted: KvRange) -> memoryview:
        self.reads.append(wanted)
        return memoryview(bytes(16))

    def release(self) -> None:
        self.released += 1


class ScriptedLanding:
    """Reserved room that only counts."""

    def __init__(self, stream: ScriptedStream, held_tokens: int) -> None:
        self._stream = stream
        self._held_tokens = held_tokens
        self.written: list[KvRange] = []
        self.committed: Sequence[TokenOutput] | None = None
        self.snapshot_tokens = 0
        self.aborted = 0

    @property
    def held_tokens(self) -> int:
        return self._held_tokens

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        self.written.append(landed)

    def commit(self, first: Sequence[TokenOutput], *, snapshot_tokens: int = 0) -> ScriptedStream:
        self.committed, self.snapshot_tokens = first, snapshot_tokens
        return self._stream

    def abort(self) -> None:
        self.aborted += 1


@dataclass
class ScriptedEngine:
    """Implements the engine port. `stream` answers submit and commit; `refuse` is raised by submit and reserve."""

    stream: ScriptedStream = field(default_factory=lambda: ScriptedStream(story(7, 8)))
    held_tokens: int = 4
    refuse: PrfaasError | None = None
    unusable: PrfaasError | None = None  # raised by check
    now: WorkerLoad = field(default_factory=WorkerLoad)
    submitted: list[GenerationRequest] = field(default_factory=list)
    exported: list[GenerationRequest] = field(default_factory=list)
    reserved: list[GenerationRequest] = field(default_factory=list)
    landings: list[ScriptedLanding] = field(default_factory=list)
    cache_events: list[CacheEvent] = field(default_factory=list)
    snapshot: tuple[int, tuple[CacheEvent, ...]] = (0, ())
    closed: bool = False

    @property
    def spec(self) -> ModelSpec:
        return SPEC

    async def check(self, request: GenerationRequest) -> None:
        if self.unusable is not None:
            raise self.unusable

    def submit(self, request: GenerationRequest, *, export: bool = False) -> ScriptedStream:
        if self.refuse is not None:
            raise self.refuse
        (self.exported if export else self.submitted).append(request)
        return self.stream

    async def reserve(self, request: GenerationRequest, *, timeout_s: float) -> ScriptedLanding:
        if self.refuse is not None:
            raise self.refuse
        self.reserved.append(request)
        self.landings.append(ScriptedLanding(self.stream, self.held_tokens))
        return self.landings[-1]

    def match(self, request: GenerationRequest) -> int:
        return self.held_tokens

    def load(self) -> WorkerLoad:
        return self.now

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        taken, self.cache_events = tuple(self.cache_events), []
        return taken

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        return self.snapshot

    def counters(self) -> Mapping[str, float]:
        return {"blocks_total": 8.0, "blocks_free": 8.0}

    def drain(self) -> None:
        raise AssertionError("a worker's doors drain, not its engine")

    def resume(self) -> None:
        raise AssertionError("a worker's doors open again, not its engine")

    async def close(self) -> None:
        self.closed = True


def full_offer(num_tokens: int, held_tokens: int, cached_tokens: int = 0) -> Offer:
    """What a sender of SPEC offers."""
    full, state = SPEC.cache.groups
    return Offer(
        num_tokens=num_tokens,
        cached_tokens=cached_tokens,
        groups=(
            GroupPlan(full, held_tokens, num_tokens, (), (DType.F32,)),
            GroupPlan(state, num_tokens, num_tokens, (num_tokens,), (DType.F32,)),
        ),
    )


Delivery = Callable[[PrefillOrder, Sink], FetchResult]


def deliver(*outputs: TokenOutput, cached_tokens: int = 0) -> Delivery:
    """A transfer that lands everything and ends with these first tokens."""

    def run(order: PrefillOrder, sink: Sink) -> FetchResult:
        num_tokens = len(order.request.tokens)
        offer = full_offer(num_tokens, order.held_tokens, cached_tokens)
        sink.begin(offer)
        sink.write(KvRange("full", 0, 1, order.held_tokens, num_tokens), memoryview(b""), (DType.F32,))
        sink.write(KvRange("state", 0, 1, num_tokens, num_tokens), memoryview(b""), (DType.F32,))
        first = FirstTokens(outputs=outputs or (token(0),), queue_s=0.125, prefill_s=0.75)
        return FetchResult(
            first=first, offer=offer, raw_bytes=100, wire_bytes=120, wire_s=0.5, codec="as_is", lanes=1, resumes=0
        )

    return run


class ScriptedTransport:
    """Implements the transport port. Each fetch plays the next outcome: a delivery, an error, or waiting for ever."""

    def __init__(self, *outcomes: Delivery | PrfaasError | None) -> None:
        self._outcomes = list(outcomes)
        self.orders: list[PrefillOrder] = []
        self.addresses: list[str] = []
        self.cancelled = 0
        self.started = asyncio.Event()
        self.link_views: tuple[LinkView, ...] = ()

    async def fetch(self, order: PrefillOrder, address: str, sink: Sink) -> FetchResult:
        self.orders.append(order)
        self.addresses.append(address)
        self.started.set()
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, PrfaasError):
            raise outcome
        if outcome is not None:
            return outcome(order, sink)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError("unreachable")

    def links(self) -> tuple[LinkView, ...]:
        return self.link_views

    def counters(self) -> dict[str, float]:
        return {"active_transfers": 0.0, "buffered_bytes": 0.0, "open_lanes": 0.0}

    async def close(self) -> None:
        return None
