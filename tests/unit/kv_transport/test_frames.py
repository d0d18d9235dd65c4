"""Frames: exact round trips, and a decoder that survives anything."""

from __future__ import annotations

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport import frames, messages
from kv_transport.api import FirstTokens, Queued
from kv_transport.checksum import crc32c
from kv_transport.frames import ChunkFrame, ChunkHeader, FirstFrame, ManifestFrame
from kv_transport.messages import Attach, Digest, First, Manifest, PathStats, Progress
from kv_transport.testing.fuzz import feed_decoder
from kv_transport.testing.sources import FIRST, hybrid_offer, order_of
from prfaas.errors import ChunkCorrupt, ProtocolViolation
from prfaas.pb import transfer_pb2
from prfaas.types import SiteId, TransferId, WorkerId

MANIFEST = Manifest(TransferId("t1"), WorkerId("p0"), SiteId("east"), hybrid_offer(), "as_is", 4)
FUZZ_INPUTS = 5_000  # `python -m benchmarks.transport fuzz` feeds a million


def header(payload_bytes: int, **changes: int) -> ChunkHeader:
    fields = {
        "codec": 0,
        "group": 1,
        "seq": 7,
        "layer_start": 2,
        "layer_stop": 5,
        "token_start": 64,
        "token_stop": 128,
        "raw_bytes": payload_bytes,
        "wire_bytes": payload_bytes,
    }
    return ChunkHeader(**(fields | changes))


def test_crc32c_is_the_castagnoli_checksum_of_any_buffer() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4's check value
    assert crc32c(memoryview(bytearray(b"123456789"))) == 0xE3069283
    assert crc32c(b"6789", crc32c(b"12345")) == 0xE3069283
    assert crc32c(b"") == 0


@given(parts=st.lists(st.binary(max_size=100), max_size=4), numbers=st.lists(st.integers(0, 2**16 - 1), min_size=6, max_size=6))
def test_chunk_round_trip(parts: list[bytes], numbers: list[int]) -> None:
    group, seq, layer_start, layer_stop, token_start, token_stop = numbers
    payload = b"".join(parts)
    sent = header(
        len(payload),
        group=group,
        seq=seq,
        layer_start=layer_start,
        layer_stop=layer_stop,
        token_start=token_start,
        token_stop=token_stop,
    )
    packed, data = frames.encode_chunk(sent, [memoryview(part) for part in parts])
    got = frames.decode(data)
    assert isinstance(got, ChunkFrame)
    assert (bytes(got.payload), got.packed_header) == (payload, packed)
    assert got.header.pack() == packed == data[:32]
    assert (got.header.seq, got.header.group, got.header.token_stop) == (seq, group, token_stop)


@settings(max_examples=200)
@given(at=st.integers(0, 32 + 63), bit=st.integers(0, 7))
def test_every_flipped_bit_of_a_chunk_is_noticed(at: int, bit: int) -> None:
    _, data = frames.encode_chunk(header(64), [bytes(range(64))])
    damaged = bytearray(data)
    damaged[at] ^= 1 << bit
    with pytest.raises((ChunkCorrupt, ProtocolViolation)):
        frames.decode(bytes(damaged))


def test_a_damaged_chunk_says_what_was_expected() -> None:
    _, data = frames.encode_chunk(header(4), [b"abcd"])
    with pytest.raises(ChunkCorrupt) as caught:
        frames.decode(data[:-1] + b"x")
    assert caught.value.detail["seq"] == 7
    assert caught.value.detail["expected"] != caught.value.detail["actual"]


def test_control_round_trips() -> None:
    assert frames.decode(frames.encode_queued(Queued(3, 1.5))) == Queued(3, 1.5)
    assert frames.decode(frames.encode_progress(Progress(9, 4))) == Progress(9, 4)
    digest = Digest(5, 1000, bytes(range(32)), PathStats(0.04, 2000, 30))
    assert frames.decode(frames.encode_digest(digest)) == digest
    encoded = frames.encode_manifest(MANIFEST)
    assert frames.decode(encoded) == ManifestFrame(MANIFEST, encoded)
    first = First(FirstTokens(FIRST.outputs, 0.1, 0.2), 0.3)
    encoded = frames.encode_first(first)
    assert frames.decode(encoded) == FirstFrame(first, encoded)


def test_order_and_attach_round_trip() -> None:
    order = order_of(50, tenant="a", deadline_s=2.5, codecs=("lossless", "as_is"))
    message = messages.to_pb_order(order, TransferId("0123456789abcdef"))
    assert messages.from_pb_order(message) == order
    assert messages.transfer_id_of(message) == "0123456789abcdef"
    with pytest.raises(ProtocolViolation, match="transfer id"):
        messages.transfer_id_of(messages.to_pb_order(order, TransferId("guess")))
    attach = Attach(TransferId("t"), 3, True, ((0, 4), (6, 7)))
    assert messages.from_pb_attach(messages.to_pb_attach(attach)) == attach


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: setattr(m, "total_bytes", 5), "bytes"),
        (lambda m: m.groups.append(m.groups[0]), "same name"),
        (lambda m: setattr(m.groups[0], "kind", "cubic"), "cubic"),
        (lambda m: setattr(m.groups[0].tensors[0], "wire_dtype", "int3"), "int3"),
        (lambda m: m.groups[0].tensors[0].shape.extend([2**31, 2**31]), "bytes of an entry"),
        (lambda m: m.groups[0].layers.extend(range(5000)), "layers"),
    ],
)
def test_manifests_that_make_no_sense(change: object, why: str) -> None:
    message = messages.to_pb_manifest(MANIFEST)
    change(message)  # type: ignore[operator]
    with pytest.raises(ProtocolViolation, match=why):
        frames.decode(b"\x02" + message.SerializeToString())


def test_an_attach_with_an_empty_range() -> None:
    message = transfer_pb2.AttachRequest(transfer_id="t", received=[transfer_pb2.SeqRange(start=3, stop=3)])
    with pytest.raises(ProtocolViolation, match="empty"):
        messages.from_pb_attach(message)


def test_the_decoder_survives_random_and_mutated_input_within_bounded_memory() -> None:
    tracemalloc.start()
    try:
        refused = feed_decoder(FUZZ_INPUTS, random.Random(20261122))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert FUZZ_INPUTS // 2 < refused < FUZZ_INPUTS  # some damage is another valid message
    assert peak < 2 * 1024**2
