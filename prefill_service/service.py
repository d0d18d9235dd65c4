"""Answers prefill orders: checks that both ends run the same model, queues the prompt, hands back its source.

Knows the engine and the transport's ports, no wire. Which tokens are sampled does not depend on where a prompt is
prefilled: the order carries the client's own sampling parameters, and the engine draws position 0 from them.
"""

from __future__ import annotations

from collections.abc import Callable

from kv_transport.api import PrefillOrder, PrefillSource, Queued
from prefill_service.outbox import Outbox
from prefill_service.source import ExportSource
from prfaas.engine.api import Engine
from prfaas.errors import InvalidRequest
from prfaas.metrics import WASTED_TOKENS, MetricSet

Admit = Callable[[], Callable[[], None]]  # enters the door and returns how to leave it; raises Draining when closed


class PrefillService:
    """Implements `kv_transport.api.PrefillHandler` over an engine. Methods are called from one event loop.

    `admit` is the door: entered for each order, left when its source is released.
    """

    def __init__(self, engine: Engine, metrics: MetricSet, admit: Admit) -> None:
        self._engine = engine
        self._metrics = metrics
        self._admit = admit

    async def open(self, order: PrefillOrder) -> PrefillSource:
        """See the port. Raises what the engine's `check` and `submit` raise, FingerprintMismatch, Draining when the door
        is closed, and InvalidRequest when the receiver claims to hold the whole prompt."""
        leave = self._admit()
        try:
            return await self._open(order, leave)
        except BaseException:
            leave()
            raise

    async def _open(self, order: PrefillOrder, leave: Callable[[], None]) -> PrefillSource:
        spec = self._engine.spec
        spec.fingerprint.require_equal(order.fingerprint)
        num_tokens = len(order.request.tokens)
        if not 0 <= order.held_tokens < max(num_tokens, 1):
            raise InvalidRequest(
                f"held_tokens is {order.held_tokens}; it must leave at least one of {num_tokens} prompt tokens to compute",
                param="held_tokens",
            )
        await self._engine.check(order.request)
        queued = self._queued()
        stream = self._engine.submit(order.request, export=True)

        def released(committed: bool, computed_tokens: int) -> None:
            if not committed:
                self._metrics.inc(WASTED_TOKENS, computed_tokens)
            leave()

        outbox = Outbox(spec.cache, num_tokens=num_tokens, held_tokens=order.held_tokens)
        return ExportSource(stream, outbox, num_samples=order.request.sampling.n, queued=queued, released=released)

    def _queued(self) -> Queued | None:
        """The queue ahead of a new order, with an estimate of 0 s while the engine's speed is unknown."""
        load = self._engine.load()
        if load.waiting == 0:
            return None
        speed = load.prefill_tokens_per_s
        return Queued(position=load.waiting, eta_s=load.waiting_prefill_tokens / speed if speed > 0 else 0.0)
