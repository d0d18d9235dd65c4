"""Wire codecs: exactness, error bounds, and refusal of input that is not theirs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv_transport.api import GroupPlan
from kv_transport.codecs.base import AsIs
from kv_transport.codecs.fp8 import E4M3, Fp8, encode_e4m3, from_float32, to_float32
from kv_transport.codecs.lossless import Lossless
from kv_transport.codecs.registry import CODECS, accepted_codecs, codec_coded, codec_named, negotiate
from kv_transport.session.coverage import range_bytes
from kv_transport.testing.sources import full_group, plan_of, state_group
from prfaas.errors import ProtocolViolation
from prfaas.modelspec import CacheGroup, DType, GroupKind, KvRange, TensorSpec

PLAN = plan_of(full_group(layers=3, width=32), 0, 64)
PART = KvRange("full", 0, 3, 0, 64)


def payload_of(plan: GroupPlan, part: KvRange, seed: int = 0) -> bytes:
    """Values with the spread of a real cache: channels of different scale."""
    rng = np.random.default_rng(seed)
    count = range_bytes(plan, part) // 2
    values = rng.standard_normal(count, np.float32) * np.exp(rng.standard_normal(count)).astype(np.float32)
    return from_float32(values, DType.BF16)


def test_e4m3_agrees_with_a_search_for_the_nearest_value() -> None:
    finite = np.array([v for v in E4M3 if np.isfinite(v)], np.float64)
    rng = np.random.default_rng(1)
    ties = [(a + b) / 2 for a, b in zip(sorted(set(finite)), sorted(set(finite))[1:], strict=False)]
    samples = np.concatenate([finite, ties, rng.uniform(-448, 448, 3000), rng.standard_normal(3000) * 0.01])
    codes = encode_e4m3(samples.astype(np.float32))
    for value, code in zip(samples.astype(np.float32), codes, strict=True):
        distances = np.abs(finite - float(value))
        assert abs(float(E4M3[code]) - float(value)) == distances.min()
        nearest = set(np.flatnonzero(np.isfinite(E4M3))[distances == distances.min()])
        if len({float(E4M3[c]) for c in nearest}) == 2:  # a tie goes to the even code
            assert code & 1 == 0


def test_e4m3_knows_its_landmarks() -> None:
    assert list(E4M3[[0x00, 0x01, 0x08, 0x38, 0x7E, 0xFE]]) == [0, 2**-9, 2**-6, 1, 448, -448]
    assert np.isnan(E4M3[[0x7F, 0xFF]]).all()


@pytest.mark.parametrize("dtype", [DType.BF16, DType.F16, DType.F32])
def test_float_conversion_is_exact_for_representable_values(dtype: DType) -> None:
    values = np.array([0, 1, -2.5, 448, 2**-9], np.float32)
    assert (to_float32(np.frombuffer(from_float32(values, dtype), np.uint8), dtype) == values).all()


def test_fp8_halves_a_chunk_within_its_error_bound() -> None:
    raw = payload_of(PLAN, PART)
    coded = Fp8().encode(PLAN, PART, [raw[:1000], raw[1000:]])
    assert coded is not None
    joined = b"".join(coded)
    assert len(joined) < 0.57 * len(raw)
    back = bytes(Fp8().decode(PLAN, PART, len(raw), memoryview(joined)))
    before, after = (to_float32(np.frombuffer(data, np.uint8), DType.BF16).reshape(3, 2, 64, 32) for data in (raw, back))
    scale = np.abs(before).max(axis=2, keepdims=True) / 448
    assert (np.abs(before - after) <= np.abs(before) / 16 * 1.07 + scale * 2**-10 * 1.07).all()


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_fp8_leaves_chunks_alone_that_are_not_finite(value: float) -> None:
    count = range_bytes(PLAN, PART) // 2
    values = np.zeros(count, np.float32)
    values[5] = value
    raw = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    assert Fp8().encode(PLAN, PART, [raw]) is None


def test_fp8_leaves_states_and_short_ranges_alone() -> None:
    states = plan_of(state_group(), 0, 0, (64,))
    part = KvRange("state", 0, 1, 64, 64)
    assert Fp8().encode(states, part, [bytes(range_bytes(states, part))]) is None
    short = KvRange("full", 0, 1, 0, 2)
    assert Fp8().encode(PLAN, short, [payload_of(PLAN, short)]) is None


def test_fp8_of_zeros_and_of_the_smallest_numbers() -> None:
    for bits in (0x0000, 0x0001, 0x8001):
        raw = np.full(range_bytes(PLAN, PART) // 2, bits, "<u2").tobytes()
        coded = Fp8().encode(PLAN, PART, [raw])
        assert coded is not None
        back = to_float32(np.frombuffer(Fp8().decode(PLAN, PART, len(raw), memoryview(b"".join(coded))), np.uint8), DType.BF16)
        assert np.abs(back).max() < 1e-37


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(1, 64), layers=st.integers(1, 3), seed=st.integers(0, 5), spread=st.booleans())
def test_lossless_is_exact_whenever_it_shrinks(tokens: int, layers: int, seed: int, spread: bool) -> None:
    part = KvRange("full", 0, layers, 0, tokens)
    raw = payload_of(PLAN, part, seed) if spread else random.Random(seed).randbytes(range_bytes(PLAN, part))
    coded = Lossless().encode(PLAN, part, [raw])
    if coded is None:
        assert not spread or len(raw) < 4096
        return
    joined = b"".join(coded)
    assert len(joined) <= 0.95 * len(raw)
    assert bytes(Lossless().decode(PLAN, part, len(raw), memoryview(joined))) == raw


def test_lossless_carries_fp32_and_refuses_mixed_widths() -> None:
    group = CacheGroup("g", GroupKind.FULL, (0,), (TensorSpec("x", (512,), DType.F32),))
    plan, part = plan_of(group, 0, 8), KvRange("g", 0, 1, 0, 8)
    raw = np.random.default_rng(0).standard_normal(4096, np.float32).tobytes()
    coded = Lossless().encode(plan, part, [raw])
    assert coded is not None
    assert bytes(Lossless().decode(plan, part, len(raw), memoryview(b"".join(coded)))) == raw
    mixed = plan_of(state_group(), 0, 0, (64,))
    state = KvRange("state", 0, 1, 64, 64)
    assert Lossless().encode(mixed, state, [bytes(range_bytes(mixed, state))]) is None


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
def test_damaged_input_is_a_protocol_violation_and_never_more(codec: object) -> None:
    assert isinstance(codec, AsIs | Fp8 | Lossless)
    raw = payload_of(PLAN, PART)
    coded = codec.encode(PLAN, PART, [raw])
    assert coded is not None
    good = b"".join(coded)
    rng = random.Random(3)
    refused = 0
    for _ in range(400):
        bad = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            bad[rng.randrange(min(len(bad), 60))] = rng.randrange(256)
        if rng.random() < 0.5:
            del bad[rng.randrange(len(bad)) :]
        try:
            assert len(codec.decode(PLAN, PART, len(raw), memoryview(bytes(bad)))) == len(raw)
        except ProtocolViolation:
            refused += 1
    assert refused > 100


def test_a_compressed_plane_that_explodes_is_refused() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(100 * 1024**2))
    count = range_bytes(PLAN, PART) // 2
    coded = len(bomb).to_bytes(4, "little") + bomb + bytes(count)
    with pytest.raises(ProtocolViolation, match="instead of"):
        Lossless().decode(PLAN, PART, 2 * count, memoryview(coded))


def test_negotiation() -> None:
    everything = ("fp8", "lossless", "as_is")
    assert negotiate("fp8", everything, 0).name == "fp8"
    assert negotiate("fp8", accepted_codecs("auto"), 0).name == "as_is"
    assert negotiate("lossless", ("as_is",), 0).name == "as_is"
    assert negotiate("auto", everything, 0).name == "as_is"
    assert negotiate("auto", everything, 50e6).name == "lossless"
    assert negotiate("auto", everything, 5e9).name == "as_is"
    assert negotiate("auto", accepted_codecs("as_is"), 50e6).name == "as_is"
    assert "fp8" not in accepted_codecs("lossless")
    assert accepted_codecs("fp8")[0] == "fp8"


def test_codecs_are_found_by_name_and_number() -> None:
    for codec in CODECS:
        assert codec_named(codec.name) is codec_coded(codec.code) is codec
    with pytest.raises(ProtocolViolation, match="unknown"):
        codec_named("gzip")
    with pytest.raises(ProtocolViolation, match="unknown"):
        codec_coded(99)
