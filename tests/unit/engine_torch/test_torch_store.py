"""The store's canonical bytes: what is written is what is read, whatever the blocks, offsets and dtypes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from prfaas.engine.backend import PoolSize  # noqa: E402
from prfaas.engine.torch_device import CpuStaging, borrow_bytes  # noqa: E402
from prfaas.engine.torch_store import TorchStore  # noqa: E402
from prfaas.modelspec import (  # noqa: E402
    CacheGroup,
    CacheSpec,
    DType,
    Fingerprint,
    GroupKind,
    KvRange,
    ModelSpec,
    TensorSpec,
)
from prfaas.sched.plan import Copy  # noqa: E402

pytestmark = pytest.mark.torch

BLOCK_TOKENS = 4


def spec() -> ModelSpec:
    full = CacheGroup("full", GroupKind.FULL, (0, 2), (TensorSpec("k", (2, 3), DType.F32), TensorSpec("v", (2, 5), DType.BF16)))
    # An odd number of bfloat16 elements leaves the next layer's float32 off its natural boundary.
    state = CacheGroup(
        "state",
        GroupKind.STATE,
        (1, 3),
        (TensorSpec("recurrent", (2, 3, 5), DType.F32), TensorSpec("conv", (3, 3), DType.BF16)),
    )
    cache = CacheSpec((full, state), BLOCK_TOKENS)
    return ModelSpec("m", "M", 10, 4, 100, cache, (1,), Fingerprint("m", "t", "c"))


def store(device_blocks: int = 16, host_blocks: int = 3) -> TorchStore:
    sizes = {"full": PoolSize(device_blocks, host_blocks), "state": PoolSize(5, 2)}
    return TorchStore(spec(), sizes, torch.device("cpu"), CpuStaging())


def fill(target: TorchStore) -> None:
    generator = torch.Generator().manual_seed(1)
    for views in target.layers:
        for tensor in views.values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))


def canonical(views: TorchStore, wanted: KvRange, blocks: list[int]) -> bytes:
    """The payload by its definition: layer, tensor, token, in loops."""
    group = spec().cache.group(wanted.group)
    out = []
    for layer in group.layers[wanted.layer_start : wanted.layer_stop]:
        for tensor in group.tensors:
            paged = views.layers[layer][tensor.name]
            if group.is_state:
                out.append(paged[blocks[0]])
            else:
                tokens = range(wanted.token_start, wanted.token_stop)
                out.append(torch.stack([paged[blocks[t // BLOCK_TOKENS], t % BLOCK_TOKENS] for t in tokens]))
    return b"".join(t.contiguous().view(torch.uint8).numpy().tobytes() for t in out)


@given(
    start=st.integers(0, 22),
    length=st.integers(1, 23),
    layers=st.sampled_from([(0, 1), (1, 2), (0, 2)]),
    order=st.permutations(range(16)),
)
@settings(max_examples=60, deadline=None)
def test_reading_and_writing_any_token_range_follows_the_canonical_layout(
    start: int, length: int, layers: tuple[int, int], order: list[int]
) -> None:
    stop = min(24, start + length)
    wanted = KvRange("full", *layers, start, stop)
    source, target = store(), store()
    fill(source)
    here, there = order[:6], list(reversed(order))[:6]
    payload = source.read(wanted, here)
    assert bytes(payload) == canonical(source, wanted, here)
    target.write(wanted, there, memoryview(bytes(payload)), [DType.F32, DType.BF16])
    assert bytes(target.read(wanted, there)) == bytes(payload)
    written = (stop - start) * 6 * (layers[1] - layers[0])
    assert sum(int(target.layers[n]["k"].count_nonzero()) for n in (0, 2)) == written


@pytest.mark.parametrize("layers", [(0, 1), (1, 2), (0, 2)])
def test_a_state_travels_whole_even_when_layers_are_not_aligned(layers: tuple[int, int]) -> None:
    source, target = store(), store()
    fill(source)
    wanted = KvRange("state", *layers, 9, 9)
    payload = source.read(wanted, [3])
    assert payload.nbytes == wanted.num_bytes(spec().cache.group("state"))
    assert bytes(payload) == canonical(source, wanted, [3])
    target.write(wanted, [1], memoryview(bytes(payload)), [DType.F32, DType.BF16])
    assert bytes(target.read(wanted, [1])) == bytes(payload)


def test_a_payload_in_other_dtypes_is_converted() -> None:
    source, target = store(), store()
    fill(source)
    wanted = KvRange("full", 0, 1, 1, 11)
    blocks = [4, 7, 2]
    k = torch.frombuffer(bytearray(source.read(wanted, blocks)[: 10 * 6 * 4]), dtype=torch.float32)
    v = torch.frombuffer(bytearray(source.read(wanted, blocks)[10 * 6 * 4 :]), dtype=torch.bfloat16)
    payload = k.to(torch.bfloat16).view(torch.uint8).numpy().tobytes() + v.to(torch.float16).view(torch.uint8).numpy().tobytes()
    target.write(wanted, blocks, memoryview(payload), [DType.BF16, DType.F16])
    landed = target.read(wanted, blocks)
    got_k = torch.frombuffer(bytearray(landed[: 10 * 6 * 4]), dtype=torch.float32)
    got_v = torch.frombuffer(bytearray(landed[10 * 6 * 4 :]), dtype=torch.bfloat16)
    assert torch.equal(got_k, k.to(torch.bfloat16).float())
    assert torch.equal(got_v, v)


def test_copies_run_in_order_over_every_layer_and_between_tiers() -> None:
    pool = store()
    fill(pool)
    wanted = KvRange("full", 0, 2, 0, 4)
    original, other = bytes(pool.read(wanted, [5])), bytes(pool.read(wanted, [6]))
    assert original != other
    pool.copy([Copy("full", 5, 2, target_tier="host"), Copy("full", 6, 5), Copy("full", 2, 9, source_tier="host")])
    assert bytes(pool.read(wanted, [9])) == original
    assert bytes(pool.read(wanted, [5])) == other
    state = KvRange("state", 0, 2, 8, 8)
    kept = bytes(pool.read(state, [0]))
    pool.copy([Copy("state", 0, 4)])
    assert bytes(pool.read(state, [4])) == kept


@pytest.mark.parametrize(
    ("wanted", "blocks"),
    [
        (KvRange("full", 0, 2, 0, 8), [1, -1]),
        (KvRange("full", 0, 2, 0, 9), [1, 2]),
        (KvRange("full", 0, 3, 0, 4), [1]),
        (KvRange("full", 1, 1, 0, 4), [1]),
        (KvRange("full", 0, 1, 4, 4), [1, 2]),
        (KvRange("state", 0, 1, 4, 4), [1, 2]),
    ],
)
def test_a_range_that_is_not_there_is_refused(wanted: KvRange, blocks: list[int]) -> None:
    with pytest.raises(ValueError):
        store().read(wanted, blocks)


def test_a_payload_of_the_wrong_length_or_type_is_refused() -> None:
    pool = store()
    wanted = KvRange("full", 0, 1, 0, 4)
    with pytest.raises(ValueError, match="has 176 bytes, not 175"):
        pool.write(wanted, [0], memoryview(bytes(175)), [DType.F32, DType.BF16])
    with pytest.raises(ValueError, match="scales"):
        pool.write(wanted, [0], memoryview(bytes(44)), [DType.F8, DType.F8])
    with pytest.raises(ValueError, match="2 tensors"):
        pool.write(wanted, [0], memoryview(bytes(96)), [DType.F32])


def test_untouched_memory_is_zero_and_the_size_is_the_sum_of_the_pools() -> None:
    pool = store(device_blocks=16, host_blocks=3)
    assert not np.frombuffer(pool.read(KvRange("full", 0, 2, 0, 64), list(range(16))), dtype=np.uint8).any()
    full, state = spec().cache.groups
    assert pool.num_bytes == 20 * full.bytes_between(0, BLOCK_TOKENS) + 8 * state.bytes_between(0, 1)  # one spare of each


def test_borrowed_bytes_share_memory_with_the_message() -> None:
    message = bytes(range(64))
    view = borrow_bytes(memoryview(message)[8:40])
    assert view.data_ptr() == np.frombuffer(message, dtype=np.uint8).ctypes.data + 8
    assert view.tolist() == list(range(8, 40))
    assert borrow_bytes(memoryview(b"")).numel() == 0
