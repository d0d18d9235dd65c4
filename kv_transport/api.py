"""The ports of the transport: what a prefill service offers, what a decode service receives, and what carries it.

A prefill is one streaming call. The decode side calls `PrefillTransport.fetch`; on the other end the transport's
server asks a `PrefillHandler` to open a `PrefillSource` and turns what the source reports into frames. Neither end
sees the other's memory layout: the unit of exchange is a `KvRange` in the canonical layout of `prfaas.modelspec`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prfaas.modelspec import CacheGroup, DType, Fingerprint, KvRange
from prfaas.types import GenerationRequest, LinkView, SiteId, TokenOutput, WorkerId


@dataclass(frozen=True, slots=True)
class PrefillOrder:
    """What a decode worker asks of a prefill worker.

    `held_tokens` is the block-aligned prefix that the receiver can use in every cache group; entries below it and
    states at or below it are not sent.
    """

    request: GenerationRequest
    fingerprint: Fingerprint
    held_tokens: int
    codecs: tuple[str, ...]  # wire codecs the receiver decodes, preferred first; "as_is" is always last
    receiver: WorkerId
    receiver_site: SiteId
    max_lanes: int = 1


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What will be sent of one cache group. `wire_dtypes` has one entry per tensor of the group."""

    group: CacheGroup
    token_start: int
    token_stop: int
    state_positions: tuple[int, ...]
    wire_dtypes: tuple[DType, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """A source's side of the manifest: what it will send, known once the prompt is admitted."""

    num_tokens: int
    cached_tokens: int
    groups: tuple[GroupPlan, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    position: int
    eta_s: float


@dataclass(frozen=True, slots=True)
class RangeReady:
    """These entries are computed and may be read from now until release."""

    range: KvRange


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The last event of a source: one output for each sample, and the two durations of the prefill."""

    outputs: tuple[TokenOutput, ...]
    queue_s: float
    prefill_s: float


SourceEvent = Queued | Offer | RangeReady | FirstTokens


class PrefillSource(Protocol):
    """One prefill whose cache becomes readable range by range. Owned by the transport's server until released."""

    def events(self) -> AsyncIterator[SourceEvent]:
        """Any number of Queued, one Offer, every RangeReady of the offer exactly once, then one FirstTokens.

        Raises a PrfaasError when the prefill fails. Closing the iterator early does not release the source.
        """
        ...

    def read(self, wanted: KvRange) -> memoryview:
        """Canonical payload of a ready range (or any part of one). Callable from any thread, repeatedly."""
        ...

    def release(self, *, committed: bool) -> None:
        """Stop computing if still computing, unpin everything. Idempotent."""
        ...


class PrefillHandler(Protocol):
    """What a prefill service is, to the transport's server."""

    async def open(self, order: PrefillOrder) -> PrefillSource:
        """Check the fingerprint and admit the order. Raises FingerprintMismatch, QueueFull, Draining, InvalidRequest."""
        ...


class Sink(Protocol):
    """Where a receiver's bytes land. Called from the event loop or from one receiving thread, never concurrently."""

    def begin(self, offer: Offer) -> None:
        """Check that the offer completes what is held. Raises ProtocolViolation if it does not."""
        ...

    def write(self, landed: KvRange, payload: memoryview, dtypes: Sequence[DType]) -> None:
        """Copy a verified chunk to its place. Ranges never overlap and may come in any order."""
        ...


@dataclass(frozen=True, slots=True)
class FetchResult:
    """A complete, digest-checked transfer. Durations in seconds on the receiver's clock unless they are the sender's."""

    first: FirstTokens
    offer: Offer
    raw_bytes: int
    wire_bytes: int
    wire_s: float  # from the sender's end of compute to the last byte landed: what compute did not hide
    codec: str
    lanes: int
    resumes: int


class PrefillTransport(Protocol):
    """Carries transfers from prefill workers to this process."""

    async def fetch(self, order: PrefillOrder, address: str, sink: Sink) -> FetchResult:
        """Run one prefill at `address` and land its cache in `sink`.

        Returns only when every byte arrived and the digest agrees; the sender is then told to release. Cancelling
        the call cancels the prefill. Raises FingerprintMismatch, QueueFull, Draining, TransferBroken,
        TransferStalled, DigestMismatch, ChunkCorrupt, ProtocolViolation, TransferGone, WorkerUnreachable, or
        whatever PrfaasError the sender raised.
        """
        ...

    def links(self) -> tuple[LinkView, ...]:
        """What is known of the paths to this site, one entry for each sending site."""
        ...

    def counters(self) -> dict[str, float]:
        """Accounting for leak audits: active_transfers, buffered_bytes, open_lanes."""
        ...

    async def close(self) -> None:
        """Cancel what is running and close every connection."""
        ...
