"""A prefill service whose caches are numbers, and a sink that keeps what lands: for tests of the transport."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kv_transport.api import FirstTokens, GroupPlan, Offer, PrefillOrder, Queued, RangeReady, SourceEvent
from prfaas.errors import PrfaasError
from prfaas.modelspec import CacheGroup, DType, Fingerprint, GroupKind, KvRange, TensorSpec
from prfaas.types import GenerationRequest, RequestId, SiteId, TokenOutput, WorkerId

FINGERPRINT = Fingerprint(model="m1", tokenizer="t1", cache="c1")


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


def order_of(tokens: int = 100, request_id: str = "r1", **changes: object) -> PrefillOrder:
    fields: dict[str, object] = {
        "request": GenerationRequest(RequestId(request_id), "m", tuple(range(tokens))),
        "fingerprint": FINGERPRINT,
        "held_tokens": 0,
        "codecs": ("as_is",),
        "receiver": WorkerId("d0"),
        "receiver_site": SiteId("west"),
        "max_lanes": 8,
    }
    return PrefillOrder(**(fields | changes))  # type: ignore[arg-type]


class Contents:
    """What every range of an offer holds: pseudo-random, different for each (group, layer, tensor, token)."""

    def __init__(self, offer: Offer, seed: int = 0) -> None:
        self.offer = offer
        self._tensors: dict[tuple[str, int, str, int], np.ndarray] = {}
        rng = np.random.default_rng(seed)
        for plan in offer.groups:
            for layer in range(len(plan.group.layers)):
                for tensor in plan.group.tensors:
                    for key, entries in self._keys(plan):
                        shape = (entries, math.prod(tensor.shape) * tensor.dtype.num_bytes)
                        self._tensors[(plan.group.name, layer, tensor.name, key)] = rng.integers(0, 256, shape, np.uint8)

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
        return b"".join(parts)

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


@dataclass
class FakeSource:
    """A PrefillSource that follows a script."""

    contents: Contents
    ranges: list[KvRange]
    layer_s: float = 0.0
    fail_after: int | None = None  # raise `error` after so many ranges
    error: PrfaasError | None = None
    hang_after: int | None = None  # wait forever after so many ranges
    queue_events: int = 0
    first: FirstTokens = FirstTokens((TokenOutput(0, 0, 42),), 0.25, 0.5)
    released: list[bool] = field(default_factory=list)
    reads: int = 0
    closed: bool = False

    async def events(self) -> AsyncIterator[SourceEvent]:
        try:
            for position in range(self.queue_events, 0, -1):
                yield Queued(position, position * 0.1)
                await asyncio.sleep(0)
            yield self.contents.offer
            for count, part in enumerate(self.ranges):
                if self.fail_after == count and self.error is not None:
                    raise self.error
                if self.hang_after == count:
                    await asyncio.Event().wait()
                await asyncio.sleep(self.layer_s)
                yield RangeReady(part)
            if self.fail_after == len(self.ranges) and self.error is not None:
                raise self.error
            yield self.first
        finally:
            self.closed = True

    def read(self, wanted: KvRange) -> memoryview:
        self.reads += 1
        return memoryview(self.contents.read(wanted))

    def release(self, *, committed: bool) -> None:
        self.released.append(committed)


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
        return self._sources.pop(0)


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


def source_of(offer: Offer | None = None, *, step_tokens: int = 0, seed: int = 0, **changes: object) -> FakeSource:
    contents = Contents(offer or hybrid_offer(), seed)
    return FakeSource(contents, ranges_of(contents.offer, step_tokens), **changes)  # type: ignore[arg-type]
