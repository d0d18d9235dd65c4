"""Send and receive sessions of one transfer, and the chunks between them, without lanes or bytes."""

from __future__ import annotations

from kv_transport.api import Offer
from kv_transport.session.chunks import Chunk
from kv_transport.session.receiver import Arrival, ReceiveSession
from kv_transport.session.sender import SendSession
from kv_transport.testing.sources import ranges_of

MANIFEST = b"manifest"
FIRST = b"first"


def header_of(chunk: Chunk) -> bytes:
    """Stands for the bytes of a chunk's header."""
    part = chunk.range
    return repr((chunk.seq, part.group, part.layer_start, part.layer_stop, part.token_start, part.token_stop)).encode()


def arrival_of(chunk: Chunk) -> Arrival:
    """What the receiver reads of a chunk's header."""
    part = chunk.range
    return Arrival(
        chunk.seq, chunk.group_index, part.layer_start, part.layer_stop, part.token_start, part.token_stop, chunk.raw_bytes
    )


def land(receiver: ReceiveSession, chunk: Chunk) -> bool:
    """Take a chunk in; False when it is here already."""
    placement = receiver.accept(arrival_of(chunk), header_of(chunk))
    if placement is None:
        return False
    receiver.landed(arrival_of(chunk), header_of(chunk), placement)
    return True


def sender_of(offer: Offer, chunk_bytes: int = 4096) -> SendSession:
    """A sender of the offer."""
    return SendSession(offer, MANIFEST, chunk_bytes=chunk_bytes)


def receiver_of(offer: Offer) -> ReceiveSession:
    """A receiver that has the manifest."""
    receiver = ReceiveSession()
    receiver.manifest(offer, MANIFEST)
    return receiver


def whole_chunks(offer: Offer) -> list[Chunk]:
    """Every chunk of a transfer whose parts are all ready."""
    sender = sender_of(offer)
    for part in ranges_of(offer):
        sender.ready(part)
    lane = sender.attach(0)
    chunks = []
    while (chunk := sender.next_chunk(lane)) is not None:
        chunks.append(chunk)
    return chunks
