"""A prefill service whose caches are numbers, and a sink that keeps what lands. Knows no transport."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kv_transport.api import FirstTokens, GroupPlan, Offer, PrefillOrder, Queued, RangeReady, SourceEvent
from kv_transport.codecs.fp8 import to_float32
from prfaas.errors import PrfaasError
from prfaas.modelspec import CacheGroup, DType, Fingerprint, GroupKind, KvRange, TensorSpec
from prfaas.types import GenerationRequest, RequestId, SiteId, TokenOutput, WorkerId

FIRST = FirstTokens((TokenOutput(0, 0, 42),), queue_s=0.25, prefill_s=0.5)
FINGERPRINT = Fingerprint(model="m1", tokenizer="t1", cache="c1")


Array = NDArray[np.uint8]


def full_group(layers: int = 4, width: int = 32, name: str = "full") -> CacheGroup:
    tensors = (TensorSpec("k", (width,), DType.BF16), TensorSpec("v", (2, width // 2), DType.BF16))
    return CacheGroup(name, GroupKind.FULL, tuple(range(layers)), tensors)


def state_group(layers: int = 3, size: int = 256, name: str = "state") -> CacheGroup:
    tensors = (TensorSpec("s", (size,), DType.F32), TensorSpec("conv", (3, 8), DType.BF16))
    return CacheGroup(name, GroupKind.STATE, tuple(range(10, 10 + layers)), tensors)


def plan_of(group: CacheGroup, start: int, stop: int, states: tuple[int, ...] = ()) -> GroupPlan:
    return GroupPlan(group, start, stop, states, tuple(t.dtype for t in group.tensors))


def hybrid_offer(tokens: int = 100, held: int = 0, layers: int = 4, width: int = 32) -> Offer:
    groups = (plan_of(full_group(layers, width), held, tokens), plan_of(state_group(), tokens, tokens, (tokens,)))
    return Offer(num_tokens=tokens, cached_tokens=held, groups=groups)


def order_of(
    tokens: int = 100,
    *,
    request_id: str = "r1",
    fingerprint: Fingerprint = FINGERPRINT,
    codecs: tuple[str, ...] = ("as_is",),
    tenant: str = "",
    deadline_s: float | None = None,
) -> PrefillOrder:
    """An order for a prompt of so many tokens."""
    request = GenerationRequest(RequestId(request_id), "m", tuple(range(tokens)), tenant=tenant, deadline_s=deadline_s)
    return PrefillOrder(request, fingerprint, 0, codecs, WorkerId("d0"), SiteId("west"), max_lanes=8)


class Contents:
    """What every range of an offer holds: pseudo-random, different for each (group, layer, tensor, token)."""

    def __init__(self, offer: Offer, seed: int = 0) -> None:
        self.offer = offer
        self.truncated = False  # reads come one byte short
        self._tensors: dict[tuple[str, int, str, int], Array] = {}
        rng = np.random.default_rng(seed)
        for plan in offer.groups:
            for layer in range(len(plan.group.layers)):
                for tensor in plan.group.tensors:
                    for key, entries in self._keys(plan):
                        shape = (entries, math.prod(tensor.shape))
                        values = rng.standard_normal(shape, np.float32)
                        array = (
                            values.view(np.uint8)
                            if tensor.dtype is DType.F32
                            else (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
                        )
                        self._tensors[(plan.group.name, layer, tensor.name, key)] = array

    def read(self, wanted: KvRange) -> bytes:
        plan = next(p for p in self.offer.groups if p.group.name == wanted.group)
        parts = []
        for layer in range(wanted.layer_start, wanted.layer_stop):
            for tensor in plan.group.tensors:
                if plan.group.is_state:
                    parts.append(self._tensors[(wanted.group, layer, tensor.name, wanted.token_stop)].tobytes())
                else:
                    array = self._tensors[(wanted.group, layer, tensor.name, -1)]
                    parts.append(array[wanted.token_start - plan.token_start : wanted.token_stop - plan.token_start].tobytes())
        payload = b"".join(parts)
        return payload[:-1] if self.truncated else payload

    @staticmethod
    def _keys(plan: GroupPlan) -> list[tuple[int, int]]:
        if plan.group.is_state:
            return [(position, 1) for position in plan.state_positions]
        return [(-1, plan.token_stop - plan.token_start)]


def ranges_of(offer: Offer, step_tokens: int = 0) -> list[KvRange]:
    """Every layer of every group, in the order a chunked prefill makes them ready."""
    ranges = []
    for plan in offer.groups:
        name, layers = plan.group.name, len(plan.group.layers)
        if plan.group.is_state:
            ranges += [KvRange(name, i, i + 1, p, p) for p in plan.state_positions for i in range(layers)]
            continue
        step = step_tokens or max(1, plan.token_stop - plan.token_start)
        for start in range(plan.token_start, plan.token_stop, step):
            ranges += [KvRange(name, i, i + 1, start, min(start + step, plan.token_stop)) for i in range(layers)]
    return ranges


@dataclass(frozen=True, slots=True)
class Script:
    """How a source departs from a prefill that goes well. Counts are of ranges made ready."""

    layer_s: float = 0.0  # between two ranges
    queue_events: int = 0
    error: PrfaasError | None = None
    fail_after: int = 0  # where `error` is raised
    hang_after: int | None = None  # then nothing more happens


WELL = Script()


@dataclass
class FakeSource:
    """A PrefillSource that follows a script."""

    contents: Contents
    ranges: list[KvRange]
    script: Script = WELL
    first: FirstTokens = FIRST
    released: list[bool] = field(default_factory=list)
    was_released: asyncio.Event = field(default_factory=asyncio.Event)
    was_read: asyncio.Event = field(default_factory=asyncio.Event)
    was_closed: asyncio.Event = field(default_factory=asyncio.Event)  # its events are not listened to any more
    reads: int = 0

    async def events(self) -> AsyncIterator[SourceEvent]:
        script = self.script
        try:
            for position in range(script.queue_events, 0, -1):
                yield Queued(position, position * 0.1)
                await asyncio.sleep(0)
            yield self.contents.offer
            for count, part in enumerate([*self.ranges, None]):
                if script.error is not None and script.fail_after == count:
                    raise script.error
                if script.hang_after == count:
                    await asyncio.Event().wait()
                await asyncio.sleep(script.layer_s)
                yield self.first if part is None else RangeReady(part)
        finally:
            self.was_closed.set()

    def read(self, wanted: KvRange) -> memoryview:
        self.reads += 1
        self.was_read.set()
        return memoryview(self.contents.read(wanted))

    def release(self, *, committed: bool) -> None:
        self.released.append(committed)
        self.was_released.set()


class FakeHandler:
    """A PrefillHandler that hands out prepared sources, one for each order, and checks the fingerprint."""

    def __init__(self, *sources: FakeSource, error: PrfaasError | None = None) -> None:
        self._sources = list(sources)
        self._error = error
        self.orders: list[PrefillOrder] = []

    async def open(self, order: PrefillOrder) -> FakeSource:
        FINGERPRINT.require_equal(order.fingerprint)
        self.orders.append(order)
        if self._error is not None:
            raise self._error
        wanted = len(order.request.tokens)
        fitting = (at for at, source in enumerate(self._sources) if source.contents.offer.num_tokens == wanted)
        return self._sources.pop(next(fitting, 0))


class KeepingSink:
    """Keeps everything that lands, and counts."""

    def __init__(self) -> None:
        self.offer: Offer | None = None
        self.landed: list[tuple[KvRange, bytes]] = []

    def begin(self, offer: Offer) -> None:
        self.offer = offer

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        self.landed.append((landed, bytes(payload)))

    def require(self, contents: Contents) -> None:
        """Every landed range holds what the source held, and together they are the whole offer."""
        total = 0
        for part, payload in self.landed:
            assert payload == contents.read(part), part
            total += len(payload)
        expected = sum(len(contents.read(part)) for part in ranges_of(contents.offer))
        assert total == expected

    def require_close(self, contents: Contents) -> None:
        """As `require`, but token entries may be off by what fp8 rounds away: 1/16, and 2**-10 of a channel's scale."""
        for part, payload in self.landed:
            expected = contents.read(part)
            if part.token_start == part.token_stop:
                assert payload == expected, part
            else:
                before, after = _values(expected), _values(payload)
                assert (np.abs(before - after) <= np.abs(before) / 15 + 0.01).all(), part


def _values(payload: bytes) -> NDArray[np.float32]:
    return to_float32(np.frombuffer(payload, np.uint8), DType.BF16)


def source_of(offer: Offer | None = None, *, step_tokens: int = 0, seed: int = 0) -> FakeSource:
    """A source that offers `offer` and makes it ready in steps of `step_tokens` (0: the whole prompt)."""
    contents = Contents(offer or hybrid_offer(), seed)
    return FakeSource(contents, ranges_of(contents.offer, step_tokens))
