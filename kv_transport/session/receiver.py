"""The receiving half of a transfer as a state machine: what may arrive when, what has landed, when it is complete.

    WAITING --manifest--> STREAMING --every chunk, first tokens and digest, in any order--> COMPLETE

Frames that a state does not allow are ProtocolViolations. Chunks may come in any order, on any lane and more than
once. Nothing here decodes, writes, waits or reads a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kv_transport.api import GroupPlan, Offer
from kv_transport.session.coverage import Coverage, IntervalSet
from kv_transport.session.digest import transfer_digest
from prfaas.errors import DigestMismatch, ProtocolViolation
from prfaas.modelspec import KvRange

MAX_CHUNKS = 1 << 20


class ReceiverState(StrEnum):
    WAITING = "waiting"
    STREAMING = "streaming"
    COMPLETE = "complete"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A chunk's place as its header states it."""

    seq: int
    group_index: int
    layer_start: int
    layer_stop: int
    token_start: int
    token_stop: int
    raw_bytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an accepted chunk goes."""

    plan: GroupPlan
    range: KvRange


class ReceiveSession:
    """One transfer at its receiver."""

    def __init__(self) -> None:
        self.state = ReceiverState.WAITING
        self.landed_bytes = 0
        self.duplicates = 0
        self._manifest_frame = b""
        self._offer: Offer | None = None
        self._coverage: Coverage | None = None
        self._headers: dict[int, bytes] = {}
        self._received = IntervalSet()
        self._first_frame: bytes | None = None
        self._digest: tuple[int, bytes] | None = None

    @property
    def total_bytes(self) -> int:
        """Raw bytes of the offer; 0 before the manifest."""
        return self._coverage.total_bytes if self._coverage is not None else 0

    @property
    def num_landed(self) -> int:
        return len(self._headers)

    @property
    def has_digest(self) -> bool:
        return self._digest is not None

    def waiting(self, frame: str) -> None:
        """A frame that only makes sense before the manifest."""
        if self.state is not ReceiverState.WAITING:
            raise self._violation(f"{frame} after the manifest", frame)

    def manifest(self, offer: Offer, frame: bytes) -> None:
        """The transfer begins. `frame` is what the digest covers."""
        self.waiting("manifest")
        self._offer = offer
        self._coverage = Coverage(offer)
        self._manifest_frame = frame
        self.state = ReceiverState.STREAMING

    def accept(self, arrival: Arrival, packed_header: bytes) -> Placement | None:
        """Where the chunk goes; None when it has landed before. Changes nothing until `landed`.

        Raises ProtocolViolation when it lies outside the offer, overlaps another chunk, has the wrong length, or is
        a duplicate that differs from the first.
        """
        known = self._headers.get(arrival.seq)
        if known is not None:
            if known != packed_header:
                raise self._violation(f"chunk {arrival.seq} came twice and differs", "chunk")
            self.duplicates += 1
            return None
        if self.state is not ReceiverState.STREAMING or self._coverage is None or self._offer is None:
            raise self._violation(f"a chunk while {self.state}", "chunk")
        if arrival.seq >= MAX_CHUNKS or arrival.group_index >= len(self._offer.groups):
            raise self._violation(f"chunk {arrival.seq} of group {arrival.group_index} is out of bounds", "chunk")
        plan = self._offer.groups[arrival.group_index]
        part = KvRange(plan.group.name, arrival.layer_start, arrival.layer_stop, arrival.token_start, arrival.token_stop)
        expected = self._coverage.check(part)
        if expected != arrival.raw_bytes:
            raise self._violation(f"chunk {arrival.seq} has {arrival.raw_bytes} bytes, its range {expected}", "chunk")
        return Placement(plan, part)

    def landed(self, arrival: Arrival, packed_header: bytes, placement: Placement) -> None:
        """An accepted chunk has been verified and written. May complete the transfer, and raises as `digest` does."""
        if self._coverage is None:
            raise self._violation("landed before the manifest", "chunk")
        self.landed_bytes += self._coverage.add(placement.range)
        self._headers[arrival.seq] = packed_header
        self._received.add(arrival.seq, arrival.seq + 1)
        self._settle()

    def first(self, frame: bytes) -> None:
        """The first tokens. A repeat after a resume must be equal."""
        self._after_manifest("first")
        if self._first_frame is not None and self._first_frame != frame:
            raise self._violation("the first tokens came twice and differ", "first")
        self._first_frame = frame
        self._settle()

    def digest(self, num_chunks: int, sha256: bytes) -> None:
        """The sender's digest. Raises DigestMismatch once everything is here and the hashes differ, and when chunks
        cover the offer in another number than the sender cut."""
        self._after_manifest("digest")
        if self._digest is not None and self._digest != (num_chunks, sha256):
            raise self._violation("the digest came twice and differs", "digest")
        self._digest = (num_chunks, sha256)
        self._settle()

    def received(self) -> tuple[tuple[int, int], ...]:
        """Landed chunks as seq ranges, for a resume."""
        return self._received.intervals()

    def _settle(self) -> None:
        if self._coverage is None or self._first_frame is None or self._digest is None or not self._coverage.complete:
            return
        if self.state is ReceiverState.COMPLETE:
            return
        num_chunks, expected = self._digest
        if self._received.intervals() != (((0, num_chunks),) if num_chunks else ()):
            raise DigestMismatch(f"the sender cut {num_chunks} chunks, {len(self._headers)} landed")
        headers = (self._headers[seq] for seq in range(num_chunks))
        if transfer_digest(self._manifest_frame, headers, self._first_frame) != expected:
            raise DigestMismatch("every chunk landed, but the digests of the two ends differ", chunks=num_chunks)
        self.state = ReceiverState.COMPLETE

    def _after_manifest(self, frame: str) -> None:
        if self.state is ReceiverState.WAITING:
            raise self._violation(f"{frame} before the manifest", frame)

    def _violation(self, message: str, frame: str) -> ProtocolViolation:
        return ProtocolViolation(message, state=self.state, frame=frame)
