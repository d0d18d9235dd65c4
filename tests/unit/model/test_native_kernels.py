"""The C++ kernels against the torch ones, for sizes that leave remainders everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prfaas.model.kernels.kernel_set import DeltaRun, Kernels, TorchKernels
from prfaas.model.kernels.native_library import NativeKernels, open_kernels
from prfaas.model.load import load_model
from prfaas.model.step import DecodeBatch
from prfaas.model.tiny import write_tiny_model
from tests.support.model_oracle import random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch
TORCH = TorchKernels()


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


@pytest.mark.parametrize(("rows", "depth", "width"), [(1, 576, 960), (3, 33, 7), (4, 64, 1030), (7, 100, 130), (16, 1536, 577)])
@pytest.mark.parametrize("biased", [False, True])
def test_linear(native: Kernels, rows: int, depth: int, width: int, biased: bool) -> None:
    x, weight = randn(rows, depth + 5)[:, :depth], randn(width, depth, seed=1)
    bias = randn(width, seed=2) if biased else None
    wanted = x.float() @ weight.float().T + (0 if bias is None else bias.float())
    ours = native.linear(x, weight, bias)
    assert ours.dtype == torch.bfloat16
    assert close(ours, wanted)


def test_many_rows_and_other_dtypes_go_to_torch(native: Kernels) -> None:
    x, weight = randn(40, 32), randn(9, 32, seed=1)
    assert torch.equal(native.linear(x, weight, None), TORCH.linear(x, weight, None))
    assert torch.equal(native.linear(x.float(), weight.float(), None), TORCH.linear(x.float(), weight.float(), None))


@pytest.mark.parametrize("width", [16, 576, 100])
def test_norm_and_gate(native: Kernels, width: int) -> None:
    x, weight = randn(5, width), randn(width, seed=1, dtype=torch.float32)
    assert close(native.rms_norm(x, weight, 1e-5), TORCH.rms_norm(x, weight, 1e-5))
    both = randn(5, 2 * width, seed=2) * 30  # far into both tails of the sigmoid
    assert close(native.silu_gate(both), TORCH.silu_gate(both.float()))
    heads = randn(3, 4, width, seed=3)
    assert close(native.rms_norm(heads, weight, 1e-5), TORCH.rms_norm(heads, weight, 1e-5))


@pytest.mark.parametrize(("kv_heads", "group", "dim"), [(3, 3, 64), (1, 7, 20), (2, 1, 256), (2, 5, 72)])
def test_attend(native: Kernels, kv_heads: int, group: int, dim: int) -> None:
    size = 16
    keys, values = randn(12, size, kv_heads, dim), randn(12, size, kv_heads, dim, seed=1)
    blocks = torch.tensor([[3, 7, 1, 11], [5, 0, 0, 0], [2, 4, 6, 0]])
    spans = ((0, 50), (3, 4), (9, 48))
    edges = torch.tensor(spans)
    entries = torch.arange(4 * size)
    hidden = (entries < edges[:, :1]) | (entries >= edges[:, 1:])
    bias = torch.zeros(3, 4 * size).masked_fill_(hidden, -torch.inf)[:, None, None]
    batch = DecodeBatch(torch.arange(3), blocks, spans, edges, bias, None)
    query = randn(3, kv_heads * group, dim, seed=2)
    wanted = TORCH.attend(query.float(), keys.float(), values.float(), batch, dim**-0.5)
    assert close(native.attend(query, keys, values, batch, dim**-0.5), wanted)


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
        inputs = [x[:rows] for x in (query, key, value, decay, beta)]
        out = native.delta(*inputs, ours, runs)  # type: ignore[arg-type]
        assert (out - TORCH.delta(*inputs, wanted, runs)).abs().max() < 2e-5  # type: ignore[arg-type]
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
