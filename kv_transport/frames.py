"""Framing of a transfer's stream: one gRPC message is one frame, its first byte the kind.

Control frames carry a protobuf body. A chunk frame carries a fixed header and the payload as it is, so that payload
bytes never pass through protobuf. A decoder allocates nothing that depends on a number it has read: payloads are views
of the frame. Every malformed input is a ProtocolViolation, a damaged chunk a ChunkCorrupt.

    chunk header, little-endian, 32 bytes:
    kind u8 | codec u8 | group u16 | seq u32 | layer_start u16 | layer_stop u16 | token_start u32 | token_stop u32
    | raw_bytes u32 | wire_bytes u32 | crc32c u32 (over the 28 bytes before it and the payload)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.message import DecodeError

from kv_transport import messages
from kv_transport.api import Queued
from kv_transport.checksum import crc32c
from kv_transport.messages import Digest, First, Manifest, Progress
from prfaas.errors import ChunkCorrupt, InvalidRequest, ProtocolViolation
from prfaas.pb import transfer_pb2

HEADER = struct.Struct("<BBHIHHIIIII")
CRC_OFFSET = HEADER.size - 4
MAX_CHUNK_BYTES = 16 * 1024**2
MAX_CONTROL_BYTES = 16 * 1024**2


class Kind(IntEnum):
    """First byte of a frame."""

    QUEUED = 1
    MANIFEST = 2
    CHUNK = 3
    PROGRESS = 4
    FIRST = 5
    DIGEST = 6


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """Where a chunk belongs and how long it is. `group` is an index into the manifest; `crc` is 0 until known."""

    codec: int
    group: int
    seq: int
    layer_start: int
    layer_stop: int
    token_start: int
    token_stop: int
    raw_bytes: int
    wire_bytes: int
    crc: int = 0

    def pack(self) -> bytes:
        """The 32 bytes on the wire, which are also what the digest covers."""
        return HEADER.pack(
            Kind.CHUNK,
            self.codec,
            self.group,
            self.seq,
            self.layer_start,
            self.layer_stop,
            self.token_start,
            self.token_stop,
            self.raw_bytes,
            self.wire_bytes,
            self.crc,
        )


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """A received chunk whose checksum agrees. `payload` is a view of the frame, as coded on the wire."""

    header: ChunkHeader
    packed_header: bytes
    payload: memoryview


@dataclass(frozen=True, slots=True)
class ManifestFrame:
    """A manifest and its exact bytes, which the digest covers."""

    manifest: Manifest
    raw: bytes


@dataclass(frozen=True, slots=True)
class FirstFrame:
    """The first tokens and the exact bytes, which the digest covers."""

    first: First
    raw: bytes


Frame = Queued | ManifestFrame | ChunkFrame | Progress | FirstFrame | Digest


def encode_chunk(header: ChunkHeader, parts: Sequence[bytes | memoryview]) -> tuple[bytes, bytes]:
    """Frame a chunk: (packed header with its checksum, whole frame). Copies the payload once, into the frame."""
    body = header.pack()[:CRC_OFFSET]
    crc = crc32c(body)
    for part in parts:
        crc = crc32c(part, crc)
    packed = body + crc.to_bytes(4, "little")
    return packed, b"".join((packed, *parts))


def encode_queued(queued: Queued) -> bytes:
    return _control(Kind.QUEUED, transfer_pb2.Queued(position=queued.position, eta_s=queued.eta_s).SerializeToString())


def encode_manifest(manifest: Manifest) -> bytes:
    return _control(Kind.MANIFEST, messages.to_pb_manifest(manifest).SerializeToString())


def encode_progress(progress: Progress) -> bytes:
    body = transfer_pb2.Progress(ready_bytes=progress.ready_bytes, sent_bytes=progress.sent_bytes)
    return _control(Kind.PROGRESS, body.SerializeToString())


def encode_first(first: First) -> bytes:
    return _control(Kind.FIRST, messages.to_pb_first(first).SerializeToString())


def encode_digest(digest: Digest) -> bytes:
    return _control(Kind.DIGEST, messages.to_pb_digest(digest).SerializeToString())


def _control(kind: Kind, body: bytes) -> bytes:
    return bytes((kind,)) + body


def decode(frame: bytes) -> Frame:
    """Decode one frame. Raises ProtocolViolation or ChunkCorrupt; never anything else, whatever the input."""
    if not frame:
        raise messages.violation("an empty frame")
    if frame[0] == Kind.CHUNK:
        return _decode_chunk(frame)
    if len(frame) > MAX_CONTROL_BYTES:
        raise messages.violation(f"a control frame of {len(frame)} bytes")
    try:
        return _decode_control(frame)
    except DecodeError as error:
        raise messages.violation(f"a control frame of kind {frame[0]} is not valid protobuf") from error
    except InvalidRequest as error:
        raise messages.violation(error.message) from error


def _decode_control(frame: bytes) -> Frame:
    kind, body = frame[0], frame[1:]
    if kind == Kind.QUEUED:
        queued = transfer_pb2.Queued.FromString(body)
        return Queued(queued.position, queued.eta_s)
    if kind == Kind.MANIFEST:
        return ManifestFrame(messages.from_pb_manifest(transfer_pb2.Manifest.FromString(body)), frame)
    if kind == Kind.PROGRESS:
        progress = transfer_pb2.Progress.FromString(body)
        return Progress(progress.ready_bytes, progress.sent_bytes)
    if kind == Kind.FIRST:
        return FirstFrame(messages.from_pb_first(transfer_pb2.FirstToken.FromString(body)), frame)
    if kind == Kind.DIGEST:
        return messages.from_pb_digest(transfer_pb2.Digest.FromString(body))
    raise messages.violation(f"a frame of unknown kind {kind}")


def _decode_chunk(frame: bytes) -> ChunkFrame:
    if len(frame) < HEADER.size:
        raise ProtocolViolation(f"a chunk frame of {len(frame)} bytes", frame="chunk", state="decoding")
    header = ChunkHeader(*HEADER.unpack_from(frame)[1:])
    payload = memoryview(frame)[HEADER.size :]
    if header.wire_bytes != len(payload) or header.raw_bytes > MAX_CHUNK_BYTES:
        raise ProtocolViolation(
            f"chunk {header.seq} states {header.wire_bytes} bytes ({header.raw_bytes} raw) and carries {len(payload)}",
            frame="chunk",
            state="decoding",
        )
    actual = crc32c(payload, crc32c(frame[:CRC_OFFSET]))
    if actual != header.crc:
        raise ChunkCorrupt(
            f"chunk {header.seq}: checksum {header.crc:#010x} expected, {actual:#010x} computed",
            seq=header.seq,
            expected=header.crc,
            actual=actual,
        )
    return ChunkFrame(header, frame[: HEADER.size], payload)
