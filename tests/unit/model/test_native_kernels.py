"""The C++ kernels against the torch ones, for sizes that leave remainders everywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prfaas.model.api import Segment, StepInput
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun, Kernels, PagedAttention
from prfaas.model.kernels.native_kernels import NativeKernels
from prfaas.model.kernels.open_kernels import open_kernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.layers.rope import Rope
from prfaas.model.load import load_model
from prfaas.model.step import PagedAccess, plan_step
from prfaas.model.tiny import write_tiny_model
from prfaas.modelspec import CacheGroup, CacheSpec, DType, GroupKind, TensorSpec
from tests.support.model_oracle import random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch
TORCH = TorchKernels()
ENTRY = (TensorSpec("k", (1,), DType.BF16),)
FULL = CacheGroup("full", GroupKind.FULL, (0,), ENTRY)
WINDOW = CacheGroup("sliding", GroupKind.SLIDING, (0,), ENTRY, window_tokens=24)


@pytest.fixture(scope="module", params=[1, 3], ids=["one-thread", "three-threads"])
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    kernels = open_kernels(tmp_path_factory.mktemp("native"), request.param)
    if not isinstance(kernels, NativeKernels):
        pytest.skip("no compiler or no AVX512-BF16 here")
    return kernels


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(ours: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Within a bf16 rounding or two of the result's scale."""
    return bool((ours.float() - wanted.float()).abs().max() <= 0.012 * wanted.float().abs().max() + 1e-6)


SHAPES = [(1, 576, 960), (3, 33, 7), (4, 64, 1031), (7, 100, 130), (16, 1536, 577)]
LONG_SHAPES = [(17, 64, 64), (40, 33, 9), (29, 98, 200), (300, 576, 97), (515, 30, 31)]


@pytest.mark.parametrize(("rows", "depth", "width"), SHAPES + LONG_SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_linear(native: Kernels, rows: int, depth: int, width: int, biased: bool) -> None:
    x, weight = randn(rows, depth + 5)[:, :depth], randn(width, depth, seed=1)
    bias = randn(width, seed=2) if biased else None
    wanted = x.float() @ weight.float().T + (0 if bias is None else bias.float())
    ours = native.linear(x, weight, bias)
    assert ours.dtype == torch.bfloat16
    assert close(ours, wanted)
    logits = native.logits(x, weight, bias)
    assert logits.dtype == torch.float32
    assert (logits - wanted).abs().max() < 1e-5 * depth  # sums in another order, no rounding to bf16


def test_other_dtypes_go_to_torch(native: Kernels) -> None:
    x, weight = randn(40, 32).float(), randn(9, 32, seed=1).float()
    assert torch.equal(native.linear(x, weight, None), TORCH.linear(x, weight, None))
    assert torch.equal(native.logits(x, weight, None), TORCH.logits(x, weight, None))


@pytest.mark.parametrize("rows", [5, 150])
@pytest.mark.parametrize("width", [16, 576, 100])
def test_norm(native: Kernels, rows: int, width: int) -> None:
    x, weight = randn(rows, width), randn(width, seed=1, dtype=torch.float32)
    assert close(native.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    more = randn(rows, width, seed=4)
    for ours, wanted in zip(native.add_norm(x, more, weight, 1e-5), TORCH.add_norm(x, more, weight, 1e-5), strict=True):
        assert close(ours, wanted)
    heads = randn(3, 4, width, seed=3)
    assert close(native.rms_norm(heads, weight, 1e-5), TORCH.rms_norm(heads, weight, 1e-5))


@pytest.mark.parametrize(("rows", "hidden", "inner"), [(1, 576, 1536), (5, 50, 26), (70, 100, 72)])
def test_gated_mlp(native: Kernels, rows: int, hidden: int, inner: int) -> None:
    x, gate_up, down = randn(rows, hidden), randn(2 * inner, hidden, seed=1), randn(hidden, inner, seed=2)
    assert close(native.gated_mlp(x, gate_up, down), TORCH.gated_mlp(x.float(), gate_up.float(), down.float()))


SIZE = 16


def plan_access(segments: list[tuple[int, int]], group: CacheGroup = FULL, absent: int = 0) -> PagedAccess:
    """(rows, context) of each segment, in scattered blocks; the first `absent` blocks of each are not there."""
    placed, row, tables, block = [], 0, [], 63
    for rows, context in segments:
        placed.append(Segment(row, rows, context))
        row += rows
        count = -(-(rows + context) // SIZE)
        tables.append([-1] * absent + list(range(block, block - count + absent, -1)))
        block -= count
    width = max(len(t) for t in tables)
    table = torch.tensor([t + [-1] * (width - len(t)) for t in tables], dtype=torch.int32)
    tokens, empty = torch.zeros(row, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
    step = StepInput(tokens, tokens, placed, {group.name: table}, {}, empty, SIZE)
    return plan_step(step, CacheSpec((group,), SIZE), {}, torch.float32, torch.device("cpu")).paged[group.name]


MIXES = {
    "decodes": [(1, 50), (1, 3), (1, 100)],
    "long decodes": [(1, 700), (1, 130)],
    "prompt": [(200, 0)],
    "continued": [(37, 111)],
    "mixed": [(1, 70), (20, 5), (1, 0), (45, 90)],
}


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(
    ("kv_heads", "group", "dim", "width"), [(3, 3, 64, 64), (1, 7, 20, 12), (2, 1, 256, 256), (2, 5, 72, 40), (1, 130, 32, 24)]
)
def test_attend(native: Kernels, mix: str, window: int | None, kv_heads: int, group: int, dim: int, width: int) -> None:
    paged = plan_access(MIXES[mix], FULL if window is None else replace(WINDOW, window_tokens=window))
    rows = int(paged.runs[:, 1].sum())
    keys, values = randn(64, SIZE, kv_heads, dim), randn(64, SIZE, kv_heads, width, seed=1)
    both, value = randn(rows, kv_heads * (group + 1), dim, seed=2), randn(rows, kv_heads, width, seed=3)
    query, key = both.split_with_sizes((kv_heads * group, kv_heads), dim=1)
    turned = 2 * (dim // 3)  # channels that are not a multiple of anything
    positions = torch.cat([torch.arange(s.context_tokens, s.end_tokens) for s in paged.segments])
    rope = Rope(torch.rand(turned // 2, generator=torch.Generator().manual_seed(1)))
    call = PagedAttention(query, key, value, rope.rotation(positions, torch.bfloat16), keys, values, paged, dim**-0.5, window)
    exact = PagedAttention(
        query.float(),
        key.float(),
        value.float(),
        rope.rotation(positions, torch.float32),
        keys.float(),
        values.float(),
        paged,
        dim**-0.5,
        window,
    )
    assert close(native.attend(call), TORCH.attend(exact))
    assert close(keys, exact.keys)
    assert close(values, exact.values)


def test_a_long_prompt_outside_its_window_is_attended_where_it_is_not_cached(native: Kernels) -> None:
    paged = plan_access([(100, 0)], replace(WINDOW, window_tokens=24), absent=4)
    fresh, rotation = randn(100, 1, 8), Rope(torch.ones(4)).rotation(torch.arange(100), torch.bfloat16)
    keys, values, other_keys, other_values = (torch.full((64, SIZE, 1, 8), 7.0).bfloat16() for _ in range(4))
    ours = PagedAttention(fresh, fresh, fresh, rotation, keys, values, paged, 0.3, 24)
    wanted = PagedAttention(fresh, fresh, fresh, rotation, other_keys, other_values, paged, 0.3, 24)
    assert torch.equal(native.attend(ours), TORCH.attend(wanted))
    assert torch.equal(ours.keys, wanted.keys)


@pytest.mark.parametrize("width", [12, 80])
def test_store(native: Kernels, width: int) -> None:
    paged, fresh = plan_access([(1, 30), (50, 7)]), randn(51, 2 * width)[:, :width]
    cache = torch.zeros(64, SIZE, width, dtype=torch.bfloat16)
    native.store(fresh, cache, paged)
    assert torch.equal(cache.flatten(0, 1)[paged.write_slots], fresh)
    assert int((cache != 0).any(-1).sum()) == 51


@pytest.mark.parametrize("lengths", [[900], [30, 1, 500], [3, 7, 5, 1, 2, 9, 40]])
@pytest.mark.parametrize(("heads", "dim", "width"), [(32, 80, 64), (5, 26, 24)])
def test_attend_latent(native: Kernels, lengths: list[int], heads: int, dim: int, width: int) -> None:
    """Long caches of few sequences are shared out by keys."""
    paged = plan_access([(1, n - 1) for n in lengths])
    latents, query = randn(64, SIZE, dim), randn(len(lengths), heads, dim, seed=1)
    wanted = TORCH.attend_latent(query.float(), latents.float(), paged, 0.2, width)
    assert close(native.attend_latent(query, latents, paged, 0.2, width), wanted)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(24, 40), (128, 128), (16, 8), (7, 70)])
def test_delta(native: Kernels, key_dim: int, value_dim: int, per_channel: bool) -> None:
    tokens, heads = 90, 3
    query, key = (
        torch.nn.functional.normalize(randn(tokens, heads, key_dim, seed=s, dtype=torch.float32), dim=-1) for s in (1, 2)
    )
    value = randn(tokens, heads, value_dim, seed=3, dtype=torch.float32)
    decay = -randn(tokens, heads, key_dim if per_channel else 1, seed=4, dtype=torch.float32).exp()
    beta = randn(tokens, heads, seed=5, dtype=torch.float32).sigmoid()
    ours, wanted = (torch.ones(4, heads, key_dim, value_dim) for _ in range(2))
    for runs in ([DeltaRun(2, 0, 90)], [DeltaRun(3, 0, 33), DeltaRun(1, 33, 90)], [DeltaRun(i, i, i + 1) for i in range(4)]):
        rows = runs[-1].stop
        inputs = DeltaRows(query, key, value, decay, beta).part(slice(0, rows))
        assert (native.delta(inputs, ours, runs) - TORCH.delta(inputs, wanted, runs)).abs().max() < 2e-5
        assert (ours - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-kimi-linear", "tiny-gemma3", "tiny-qwen3-next"])
def test_a_whole_model_is_as_close_to_float32_as_with_torch(native: Kernels, name: str, tmp_path: Path) -> None:
    """bf16 flips an expert's choice now and then, so the two are compared by their distance to float32."""
    write_tiny_model(name, tmp_path)

    def decode(kernels: Kernels, dtype: torch.dtype) -> torch.Tensor:
        model = load_model(
            str(tmp_path), served_name="m", block_tokens=16, dtype=dtype, device=torch.device("cpu"), kernels=kernels
        )
        runner = PagedRunner(model)
        first, second = runner.start(), runner.start()
        runner.run((first, random_tokens(70, 512)), (second, random_tokens(9, 512)))
        return torch.cat([runner.run((first, [9]), (second, [t])) for t in range(20, 32)])

    exact = decode(TORCH, torch.float32)
    by_torch, by_native = ((decode(k, torch.bfloat16) - exact).abs().mean() for k in (TORCH, native))
    assert by_native < 1.5 * by_torch
    assert (decode(native, torch.float32) - exact).abs().max() < 1e-3  # float32 steps use the native recurrence only


def test_a_missing_compiler_is_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(open_kernels(tmp_path / "cache", 1), TorchKernels)


def test_settling_a_weight_changes_nothing_that_can_be_seen(native: Kernels) -> None:
    weight = randn(3000, 1000)
    kept, address = weight.clone(), weight.data_ptr()
    native.settle(weight[10:-10])
    assert torch.equal(weight, kept)
    assert weight.data_ptr() == address
