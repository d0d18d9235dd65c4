"""Random and mutated frames for the decoder. Knows what a well-formed frame of each kind is, and no transport."""

from __future__ import annotations

import random

from kv_transport import frames
from kv_transport.api import Queued
from kv_transport.frames import ChunkHeader
from kv_transport.messages import Digest, First, Manifest, Progress
from kv_transport.testing.sources import FIRST, hybrid_offer
from prfaas.errors import ChunkCorrupt, ProtocolViolation
from prfaas.types import SiteId, TransferId, WorkerId

MANIFEST = Manifest(TransferId("t" * 32), WorkerId("p0"), SiteId("east"), hybrid_offer(), "as_is", 4)
CHUNK_HEADER = ChunkHeader(0, 1, 7, 2, 5, 64, 128, raw_bytes=64, wire_bytes=64)


def well_formed() -> list[bytes]:
    """One frame of every kind."""
    return [
        frames.encode_chunk(CHUNK_HEADER, [bytes(64)])[1],
        frames.encode_manifest(MANIFEST),
        frames.encode_first(First(FIRST, 0.1)),
        frames.encode_digest(Digest(5, 1000, bytes(32))),
        frames.encode_queued(Queued(3, 1.5)),
        frames.encode_progress(Progress(2**40, 2**30)),
    ]


def feed_decoder(inputs: int, rng: random.Random) -> int:
    """Decode so many damaged frames and return how many were refused. Whatever is raised beyond the two errors that
    the decoder promises goes through."""
    seeds = well_formed()
    refused = 0
    for _ in range(inputs):
        try:
            frames.decode(_damaged(seeds, rng))
        except (ProtocolViolation, ChunkCorrupt):
            refused += 1
    return refused


def _damaged(seeds: list[bytes], rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(80))
    frame = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 4)):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    action = rng.random()
    if action < 0.15:
        del frame[rng.randrange(len(frame)) :]
    elif action < 0.25:  # the head of one frame with the tail of another
        frame[rng.randrange(len(frame)) :] = rng.choice(seeds)[rng.randrange(8) :]
    elif action < 0.35:  # a number that claims to be as large as it can be
        at = rng.randrange(len(frame))
        frame[at : at + 4] = b"\xff\xff\xff\xff"
    return bytes(frame)
