"""The emulated backend's own promises: reversible bytes, times by the profile, and that wrong cache content shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.engine.backend import PoolSize
from prfaas.engine.emulated import EmulatedBackend
from prfaas.engine.emulated_store import mix, unmix
from prfaas.errors import EngineFailed, UnsupportedParameter
from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, KvRange, TensorSpec
from prfaas.planner.profile import Curve, HardwareProfile
from prfaas.sched.plan import Copy, Draw, Row, StepPlan
from prfaas.types import Grammar, GrammarKind, SamplingParams
from tests.support.tiny_specs import emulated_backend, pool_sizes, tiny_spec

SPEC = tiny_spec("everything")
TOKENS = tuple(range(1, 15))
TABLE = (5, 2, 9, 7)
GREEDY = SamplingParams(temperature=0.0)


def row(tokens: tuple[int, ...], context: int, *, table: tuple[int, ...] = TABLE, slot: int = 3, draw: bool = True) -> Row:
    return Row(
        sequence_id=1,
        tokens=tokens,
        context_tokens=context,
        block_tables={g.name: table for g in SPEC.cache.groups if not g.is_state},
        state_slots={"kda": slot},
        draws=(Draw(0, 0, GREEDY, TOKENS, ()),) if draw else (),
    )


def token(backend: EmulatedBackend, one: Row, before: tuple[Copy, ...] = ()) -> int:
    return backend.execute(StepPlan((one,), before=before), None).rows[1].drawn[0].token_id


def right_token() -> int:
    return token(emulated_backend(SPEC), row(TOKENS, 0))


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1))
def test_mixing_is_reversible(words: list[int]) -> None:
    array = np.array(words, np.uint64)
    assert (unmix(mix(array)) == array).all()


@pytest.mark.parametrize("cut", [1, 4, 6, 13])
def test_chunks_change_nothing(cut: int) -> None:
    backend = emulated_backend(SPEC)
    backend.execute(StepPlan((row(TOKENS[:cut], 0, draw=False),)), None)
    assert token(backend, row(TOKENS[cut:], cut)) == right_token()


@pytest.mark.parametrize("group", ["mla", "swa", "wide", "kda"])
def test_one_stale_block_or_state_shows(group: str) -> None:
    backend = emulated_backend(SPEC)
    backend.execute(StepPlan((row(TOKENS[:13], 0, draw=False),)), None)
    spoil = Copy(group, 11, 3 if group == "kda" else TABLE[2])
    assert token(backend, row(TOKENS[13:], 13), before=(spoil,)) != right_token()


def test_swapped_blocks_show() -> None:
    backend = emulated_backend(SPEC)
    backend.execute(StepPlan((row(TOKENS[:13], 0, draw=False),)), None)
    assert token(backend, row(TOKENS[13:], 13, table=(2, 5, 9, 7))) != right_token()


@pytest.mark.parametrize("group", ["mla", "swa", "wide", "kda"])
def test_bytes_carry_the_cache_and_every_damaged_byte_is_seen(group: str) -> None:
    backend, other = emulated_backend(SPEC), emulated_backend(SPEC)
    backend.execute(StepPlan((row(TOKENS, 0),)), None)
    spec = SPEC.cache.group(group)
    blocks = (3,) if spec.is_state else TABLE
    wanted = KvRange(group, 0, len(spec.layers), 14 if spec.is_state else 8, 14)
    payload, dtypes = bytes(backend.read(wanted, blocks)), [tensor.dtype for tensor in spec.tensors]
    assert len(payload) == wanted.num_bytes(spec)
    other.write(wanted, blocks, memoryview(payload), dtypes)
    assert bytes(other.read(wanted, blocks)) == payload
    assert other.corrupt_entries == 0
    for position in range(len(payload)):
        damaged = bytearray(payload)
        damaged[position] ^= 0x40
        other.write(wanted, blocks, memoryview(damaged), dtypes)
        assert bytes(other.read(wanted, blocks)) != payload
    assert other.corrupt_entries > 0


def test_wrong_lengths_and_dtypes_are_refused() -> None:
    backend = emulated_backend(SPEC)
    wanted = KvRange("swa", 0, 1, 0, 4)
    with pytest.raises(ValueError, match="payload"):
        backend.write(wanted, TABLE, memoryview(b"x" * 3), [DType.F32])
    with pytest.raises(ValueError, match="resident"):
        backend.write(wanted, TABLE, memoryview(b"x" * 64), [DType.F8])
    with pytest.raises(EngineFailed):
        backend.execute(StepPlan((row(TOKENS, 0, table=(1, -1, 2, 3)),)), None)


def test_steps_take_what_the_profile_says() -> None:
    waits: list[float] = []
    profile = HardwareProfile("h", Curve((0.0, 100.0), (1.0, 11.0)), Curve((1.0, 2.0), (0.25, 0.5)), 2)
    backend = EmulatedBackend(SPEC, pool_sizes(SPEC), profile, sleep=waits.append, time_scale=0.5)
    first = StepPlan((row(TOKENS[:10], 0, draw=False),))
    assert backend.step_s(first) == pytest.approx(2.0)
    assert backend.step_s(StepPlan((row(TOKENS[10:], 10),))) == pytest.approx(0.4)
    assert backend.step_s(StepPlan((row(TOKENS[13:], 13),))) == pytest.approx(0.25)
    layers: list[int] = []
    backend.execute(first, layers.append)
    assert layers == list(range(SPEC.num_layers))
    assert sum(waits) == pytest.approx(1.0)
    assert len(waits) == SPEC.num_layers


def test_what_cannot_be_emulated_is_refused() -> None:
    backend = emulated_backend(SPEC)
    backend.check(SamplingParams(temperature=0.5, top_p=0.9))
    for params in (SamplingParams(grammar=Grammar(GrammarKind.JSON_OBJECT)), SamplingParams(logit_bias=((1, 2.0),))):
        with pytest.raises(UnsupportedParameter):
            backend.check(params)
    narrow = CacheSpec((CacheGroup("n", GroupKind.FULL, (0,), (TensorSpec("t", (1,), DType.F32),)),), 4)
    with pytest.raises(ValueError, match="at least 8 bytes"):
        EmulatedBackend(
            tiny_spec().__class__("n", "n", 9, 1, 9, narrow, (), SPEC.fingerprint),
            {"n": PoolSize(1)},
            HardwareProfile("h", Curve((0.0, 1.0), (0.0, 0.0)), Curve((1.0, 2.0), (0.0, 0.0)), 1),
            sleep=lambda _: None,
        )
