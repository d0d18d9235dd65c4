"""The port between an engine and the two doors. No torch here: the emulated engine and the simulator implement it too.

An engine owns sequences, cache and scheduling. A door submits work and reads events. Three kinds of work exist:
generate (prefill and decode here), export (prefill here, hold the cache for a transfer) and landing (reserve room,
write a cache computed elsewhere, then decode).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from prfaas.modelspec import DType, KvRange, ModelSpec
from prfaas.types import CacheEvent, GenerationRequest, TokenOutput, Usage, WorkerLoad


@dataclass(frozen=True, slots=True)
class Admitted:
    """The sequence left the queue after `queue_s` seconds; `cached_tokens` of its prompt need no computing.

    Export only: `snapshot_tokens` is the block boundary whose recurrent states will be readable too, 0 for none.
    """

    cached_tokens: int
    queue_s: float
    snapshot_tokens: int = 0


@dataclass(frozen=True, slots=True)
class LayersReady:
    """Export only: model layers [layer_start, layer_stop) hold the cache of prompt tokens [token_start, token_stop).

    When token_stop is the prompt's length, the recurrent states of these layers are final too.
    """

    layer_start: int
    layer_stop: int
    token_start: int
    token_stop: int


@dataclass(frozen=True, slots=True)
class SnapshotReady:
    """Export only: the states of all layers after `num_tokens`, as announced by Admitted, are readable."""

    num_tokens: int


@dataclass(frozen=True, slots=True)
class TokensOut:
    """New tokens, at most one per sample. For an export these are the first tokens, with the compute time."""

    outputs: tuple[TokenOutput, ...]
    prefill_s: float | None = None  # set on the first TokensOut: from admission to the first token


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a stream that ended well."""

    usage: Usage


EngineEvent = Admitted | LayersReady | SnapshotReady | TokensOut | Finished


class EngineStream(Protocol):
    """One sequence's events. Generate and landing: Admitted, TokensOut..., Finished. Export: Admitted, LayersReady... (and
    SnapshotReady among them, if announced), TokensOut (the first tokens), Finished; its cache stays pinned until `release`.
    """

    def events(self) -> AsyncIterator[EngineEvent]:
        """Each event once, in order. Raises EngineFailed, RequestCancelled, OutOfBlocks."""
        ...

    def cancel(self) -> None:
        """Stop computing and free everything as soon as the running step allows. Idempotent, callable at any time."""
        ...

    def read(self, wanted: KvRange) -> memoryview:
        """Export only: canonical payload of a ready range, in the spec's dtypes. From any thread."""
        ...

    def release(self) -> None:
        """Export only: unpin the cache (it stays in the prefix cache while there is room). Idempotent; cancels if running."""
        ...


class Landing(Protocol):
    """Reserved room for a prompt whose cache comes from elsewhere. Exactly one of `commit` and `abort` ends it."""

    @property
    def held_tokens(self) -> int:
        """Block-aligned prefix already usable here in every cache group, pinned by this reservation."""
        ...

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Copy canonical bytes in; converts when `dtypes` differ from the resident ones. From any thread.

        States at another boundary than the one there is room for are let go."""
        ...

    def commit(self, first: Sequence[TokenOutput], *, snapshot_tokens: int = 0) -> EngineStream:
        """Publish the cache and decode on from the first tokens. `snapshot_tokens`: the block boundary whose states landed
        too, so that a later prompt can resume there; 0 for none. The stream repeats them as its first TokensOut, with
        the finish reason this engine gives them."""
        ...

    def abort(self) -> None:
        """Free the room. Nothing written is ever read. Idempotent."""
        ...


class Engine(Protocol):
    """A running engine. Methods are called from one event loop; computing happens elsewhere."""

    @property
    def spec(self) -> ModelSpec: ...

    async def check(self, request: GenerationRequest) -> None:
        """Raise InvalidRequest when this engine cannot honour the sampling parameters. Doors await it before `submit` and
        `reserve`: what takes long (compiling a grammar) then runs off the event loop and within a bounded time."""
        ...

    def submit(self, request: GenerationRequest, *, export: bool = False) -> EngineStream:
        """Queue a request. Raises PromptTooLong, InvalidRequest, QueueFull (with retry_after_s), OutOfBlocks if it can
        never fit, Draining."""
        ...

    async def reserve(self, request: GenerationRequest, *, timeout_s: float) -> Landing:
        """Reserve room for a landing, waiting at most `timeout_s` for blocks. Raises as `submit` does."""
        ...

    def match(self, request: GenerationRequest) -> int:
        """Prompt tokens a prefix hit would save right now, in tokens."""
        ...

    def load(self) -> WorkerLoad: ...

    def take_cache_events(self) -> tuple[CacheEvent, ...]:
        """Cache events since the last call, bounded; after an overflow the sequence numbers show a gap."""
        ...

    def cache_snapshot(self) -> tuple[int, tuple[CacheEvent, ...]]:
        """Next sequence number, and `stored` events that rebuild the whole view."""
        ...

    def counters(self) -> Mapping[str, float]:
        """Accounting for leak audits: blocks_total, blocks_free, blocks_cached, blocks_used, slots_total, slots_free,
        slots_cached, slots_used, sequences_running, sequences_waiting, landings, exports_pinned."""
        ...

    def drain(self) -> None:
        """Refuse new work with Draining; running work goes on."""
        ...

    def resume(self) -> None:
        """Take new work again (a converted node)."""
        ...

    async def close(self) -> None:
        """Cancel everything, stop computing, free the device."""
        ...
