"""The sending half of a transfer as a state machine: what may be sent, who carries it, what must be sent again.

    COMPUTING --computed--> COMPUTED --close--> CLOSED          (close is legal from every state)

Chunks are numbered when they are cut. A lane owns the chunks it was given; when it comes back, those that the receiver
says it lacks are queued again under their old numbers. Nothing here encodes, waits or reads a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from enum import StrEnum

from kv_transport.api import Offer
from kv_transport.session.chunks import Chunk, Cutter
from kv_transport.session.coverage import Coverage, offer_bytes
from kv_transport.session.digest import transfer_digest
from prfaas.errors import EngineFailed, ProtocolViolation
from prfaas.modelspec import KvRange

MIN_CHUNK_BYTES = 64 * 1024
LONGEST_CHUNK_S = 0.25  # of a slow lane
SHORTEST_CHUNK_S = 0.05  # what a lane sends faster is not cut smaller: lanes that finish this far apart are even enough


class SenderState(StrEnum):
    COMPUTING = "computing"
    COMPUTED = "computed"
    CLOSED = "closed"


class SendSession:
    """One transfer at its sender. `chunk_bytes` is the target size of a chunk before its codec."""

    def __init__(self, offer: Offer, manifest_frame: bytes, *, chunk_bytes: int) -> None:
        self.state = SenderState.COMPUTING
        self.total_bytes = offer_bytes(offer)
        self.cut_bytes = 0
        self.resent_chunks = 0
        self.helped_chunks = 0
        self._manifest_frame = manifest_frame
        self._chunk_bytes = chunk_bytes
        self._ready = Coverage(offer)
        self._cutter = Cutter(offer)
        self._chunks: list[Chunk] = []
        self._owners: list[int] = []  # attachment that was last given the chunk, by seq
        self._headers: list[bytes | None] = []  # as sent, by seq
        self._again: deque[int] = deque()
        self._leaving: dict[int, int] = {}  # chunks in a lane's hand -> its attachment, longest first
        self._first_frame: bytes | None = None
        self._attached: dict[int, int] = {}  # lane -> attachment
        self._lane_of: list[int] = []  # by attachment
        self.wire_bytes = 0  # each chunk once, resends left out

    @property
    def ready_bytes(self) -> int:
        """Raw bytes the source has reported so far."""
        return self._ready.added_bytes

    @property
    def waiting_bytes(self) -> int:
        """Raw bytes that are computed and have not been handed over to the network."""
        return self.ready_bytes - self.cut_bytes + sum(self._chunks[seq].raw_bytes for seq in self._leaving)

    @property
    def first_frame(self) -> bytes | None:
        """The first-token frame, once computing has ended."""
        return self._first_frame

    @property
    def num_lanes(self) -> int:
        return len(self._attached)

    @property
    def has_work(self) -> bool:
        """Whether a lane could be given a chunk now."""
        return bool(self._again) or self._cutter.ready_bytes > 0

    @property
    def drained(self) -> bool:
        """Everything is computed and has been given to a lane; only a resume makes more work."""
        return self.state is not SenderState.COMPUTING and not self.has_work

    def ready(self, part: KvRange) -> None:
        """The source can read `part`. Raises EngineFailed when the source contradicts its own offer."""
        self._require(SenderState.COMPUTING, "ready")
        try:
            self._ready.add(part)
        except ProtocolViolation as error:
            raise EngineFailed(f"the prefill reported a range it did not offer: {error.message}") from error
        self._cutter.add(part)

    def computed(self, first_frame: bytes) -> None:
        """The source has ended well. Raises EngineFailed when part of the offer never became ready."""
        self._require(SenderState.COMPUTING, "computed")
        if not self._ready.complete:
            missing = self._ready.total_bytes - self._ready.added_bytes
            raise EngineFailed(f"the prefill ended with {missing} bytes of its offer missing", missing_bytes=missing)
        self._first_frame = first_frame
        self.state = SenderState.COMPUTED

    def attach(self, lane: int) -> int:
        """A lane begins to carry; an older attachment of the same lane is superseded. Returns the attachment."""
        if self.state is SenderState.CLOSED:
            raise ProtocolViolation("the transfer is closed", state=self.state, frame="attach")
        attachment = len(self._lane_of)
        self._lane_of.append(lane)
        self._attached[lane] = attachment
        return attachment

    def is_attached(self, lane: int, attachment: int) -> bool:
        """False once the lane was attached anew or detached."""
        return self._attached.get(lane) == attachment

    def detach(self, lane: int, attachment: int) -> None:
        """The lane has gone, well or badly; its unconfirmed chunks wait for a resume. Idempotent."""
        if self.is_attached(lane, attachment):
            del self._attached[lane]
        for seq in [seq for seq, owner in self._leaving.items() if owner == attachment]:
            del self._leaving[seq]

    def resume(self, received: Iterable[tuple[int, int]], lanes: Collection[int]) -> int:
        """Queue again every chunk that earlier attachments of `lanes` carried and that is not in `received` (seq ranges).

        Another broken lane's chunks wait for its own resume: what of them has arrived, `received` may not say yet.
        Returns how many. Raises ProtocolViolation when the receiver claims a chunk that was never cut.
        """
        alive = set(self._attached.values())
        gone = {at for at, lane in enumerate(self._lane_of) if lane in lanes and at not in alive}
        have = bytearray(len(self._chunks))
        for start, stop in received:
            if not 0 <= start < stop <= len(self._chunks):
                raise ProtocolViolation(f"chunks {start}:{stop} were never sent", state=self.state, frame="attach")
            have[start:stop] = b"\x01" * (stop - start)
        queued = set(self._again)
        lost = [seq for seq, owner in enumerate(self._owners) if not have[seq] and owner in gone and seq not in queued]
        self._again.extend(lost)
        self.resent_chunks += len(lost)
        return len(lost)

    def next_chunk(self, attachment: int, *, lane_bytes_per_s: float = 0.0) -> Chunk | None:
        """Give the attachment the next chunk. None when nothing is ready. Chunks to be sent again go first."""
        if self._again:
            seq = self._again.popleft()
            self._owners[seq] = attachment
            self._leaving[seq] = attachment
            return self._chunks[seq]
        chunk = self._cutter.cut(self.chunk_limit(lane_bytes_per_s))
        if chunk is not None:
            self._chunks.append(chunk)
            self._owners.append(attachment)
            self._leaving[chunk.seq] = attachment
            self._headers.append(None)
            self.cut_bytes += chunk.raw_bytes
        return chunk

    def left(self, seq: int) -> None:
        """A lane has handed the chunk over to the network."""
        self._leaving.pop(seq, None)

    def steal(self, attachment: int) -> Chunk | None:
        """With nothing left to give: a chunk that another lane has had in hand the longest, to be sent on this idle
        lane as well. Whichever copy arrives first counts, so a transfer does not wait for its slowest lane. Each chunk
        is helped with once."""
        if not self.drained:
            return None
        for seq, owner in self._leaving.items():
            if owner != attachment and self._headers[seq] is not None:
                del self._leaving[seq]
                self.helped_chunks += 1
                return self._chunks[seq]
        return None

    def chunk_limit(self, lane_bytes_per_s: float = 0.0) -> int:
        """How many bytes the next chunk may have: at most a quarter of a second of a slow lane, and on several lanes less
        and less towards the end of a transfer, so that no lane finishes long after the others."""
        limit = self._chunk_bytes
        if lane_bytes_per_s > 0:
            limit = min(limit, int(lane_bytes_per_s * LONGEST_CHUNK_S))
        if self.num_lanes > 1:
            share = (self.total_bytes - self.cut_bytes) // (2 * self.num_lanes)
            limit = min(limit, max(share, int(lane_bytes_per_s * SHORTEST_CHUNK_S)))
        return max(limit, min(MIN_CHUNK_BYTES, self._chunk_bytes))

    def framed(self, seq: int, packed_header: bytes, wire_bytes: int) -> None:
        """A chunk has been encoded. Raises EngineFailed when a resend differs from what was sent first."""
        known = self._headers[seq]
        if known is None:
            self._headers[seq] = packed_header
            self.wire_bytes += wire_bytes
        elif known != packed_header:
            raise EngineFailed(f"the cache behind chunk {seq} has changed between two reads of it", seq=seq)

    def digest(self) -> bytes | None:
        """The transfer's digest, once every chunk has been framed and the first tokens are known."""
        if not self.drained or self._first_frame is None:
            return None
        headers = [header for header in self._headers if header is not None]
        if len(headers) != len(self._headers):
            return None
        return transfer_digest(self._manifest_frame, headers, self._first_frame)

    @property
    def num_chunks(self) -> int:
        return len(self._chunks)

    def close(self) -> None:
        """Committed, cancelled or expired. Idempotent."""
        self.state = SenderState.CLOSED

    def _require(self, state: SenderState, event: str) -> None:
        if self.state is not state:
            raise EngineFailed(f"{event} while the transfer is {self.state}", state=self.state)
