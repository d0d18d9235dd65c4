"""One export of the engine as the source of a transfer. Knows no wire; the transport's server owns and releases it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from kv_transport.api import FirstTokens, Queued, RangeReady, SourceEvent
from prefill_service.outbox import Outbox
from prfaas.engine.api import Admitted, EngineStream, LayersReady, SnapshotReady, TokensOut
from prfaas.errors import EngineFailed
from prfaas.modelspec import KvRange

Released = Callable[[bool, int], None]  # (committed, prompt tokens computed here)


class ExportSource:
    """Implements `kv_transport.api.PrefillSource` over an engine's export stream.

    `released` is called once, by the first `release`.
    """

    def __init__(
        self, stream: EngineStream, outbox: Outbox, *, num_samples: int, queued: Queued | None, released: Released
    ) -> None:
        self._stream = stream
        self._outbox = outbox
        self._num_samples = num_samples
        self._queued = queued
        self._released: Released | None = released
        self._queue_s = 0.0
        self._cached_tokens = 0
        self._computed_tokens = 0

    async def events(self) -> AsyncIterator[SourceEvent]:
        """See the port. Raises EngineFailed when the engine ends the export without everything it promised."""
        if self._queued is not None:
            yield self._queued
        sampled = False
        async for event in self._stream.events():
            if isinstance(event, Admitted):
                self._queue_s, self._cached_tokens = event.queue_s, event.cached_tokens
                yield self._outbox.offer(event.cached_tokens, event.snapshot_tokens)
                for ready in self._outbox.cached(event.cached_tokens):
                    yield RangeReady(ready)
            elif isinstance(event, LayersReady):
                self._computed_tokens = max(self._computed_tokens, event.token_stop - self._cached_tokens)
                for ready in self._outbox.ready(event):
                    yield RangeReady(ready)
            elif isinstance(event, SnapshotReady):
                for ready in self._outbox.snapshot(event.num_tokens):
                    yield RangeReady(ready)
            elif isinstance(event, TokensOut):
                sampled = True
                yield self._first_tokens(event)
        if not sampled:
            raise EngineFailed("the engine ended an export before its first tokens")

    def _first_tokens(self, event: TokensOut) -> FirstTokens:
        if event.prefill_s is None or len(event.outputs) != self._num_samples or not self._outbox.complete:
            raise EngineFailed("the engine sampled before the whole prompt was reported ready")
        return FirstTokens(outputs=event.outputs, queue_s=self._queue_s, prefill_s=event.prefill_s)

    def read(self, wanted: KvRange) -> memoryview:
        return self._stream.read(wanted)

    def release(self, *, committed: bool) -> None:
        self._stream.release()
        released, self._released = self._released, None
        if released is not None:
            released(committed, self._computed_tokens)
