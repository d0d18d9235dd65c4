"""The accelerator's kernels, on a CPU: experts and causal attention against torch's own, and what fla-core's functions are
given, against its naive references and, in Triton's interpreter, against the function itself."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from prfaas.model.kernels.attention import attend_prefill
from prfaas.model.kernels.cuda_attention import attend_causal
from prfaas.model.kernels.cuda_delta import DeltaOps, FusedDelta
from prfaas.model.kernels.cuda_kernels import CudaKernels
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun
from prfaas.model.kernels.open_kernels import open_cuda_kernels
from prfaas.model.kernels.torch_kernels import TorchKernels

pytestmark = pytest.mark.torch

HEADS, KEY, VALUE, SLOTS = 3, 16, 24, 6


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 3, 40])
@pytest.mark.parametrize("inner", [16, 15])  # rows of 15 do not start where grouped products want them
def test_experts_equal_torchs(tokens: int, inner: int, dtype: torch.dtype) -> None:
    draw = generator()
    x = torch.randn(tokens, 32, generator=draw).to(dtype)
    gate_up = (torch.randn(7, 2 * inner, 32, generator=draw) * 0.2).to(dtype)
    down = (torch.randn(7, 32, inner, generator=draw) * 0.2).to(dtype)
    ids = torch.stack([torch.randperm(6, generator=draw)[:3] for _ in range(tokens)])  # the last expert is never chosen
    weights = torch.rand(tokens, 3, generator=draw)
    found = CudaKernels(None).experts(x, ids, weights, gate_up, down)
    wanted = TorchKernels().experts(x, ids, weights, gate_up, down)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("rows", "past"), [(1, 0), (5, 0), (5, 9), (70, 130)])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_causal_attention_equals_the_processors(rows: int, past: int, heads: int, kv_heads: int) -> None:
    draw = generator()
    query = torch.randn(rows, heads, 16, generator=draw)
    key, value = (torch.randn(past + rows, kv_heads, 16, generator=draw) for _ in range(2))
    wanted = attend_prefill(query, key[past:], value[past:], key[:past], value[:past], 0.3)
    torch.testing.assert_close(attend_causal(query, key, value, 0.3), wanted, rtol=1e-5, atol=1e-5)


# The delta rule: our arguments in the package's own signatures


def naive(folder: str) -> Any:
    """The package's reference file, which needs no Triton."""
    loaded = importlib.util.spec_from_file_location(f"naive_{folder}", package() / folder / "naive.py")
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


def package() -> Path:
    spec = importlib.util.find_spec("fla")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("fla-core is not installed")
    return Path(next(iter(spec.submodule_search_locations))) / "ops"


def rows_of(tokens: int, *, per_channel: bool, seed: int = 5) -> DeltaRows:
    draw = generator(seed)
    query, key = (torch.nn.functional.normalize(torch.randn(tokens, HEADS, KEY, generator=draw), dim=-1) for _ in range(2))
    value = torch.randn(tokens, HEADS, VALUE, generator=draw)
    decay = -torch.rand(tokens, HEADS, KEY if per_channel else 1, generator=draw)
    return DeltaRows(query * KEY**-0.5, key, value, decay, torch.rand(tokens, HEADS, generator=draw))


@dataclass
class Reference:
    """fla's functions by its naive ones: several sequences on one token axis, and states in place."""

    kda: Any
    gdn: Any

    def chunk(self, q: Any, k: Any, v: Any, *, g: Any, beta: Any, initial_state: Any, cu_seqlens: Any, **more: Any) -> Any:
        assert more == {"scale": 1.0, "output_final_state": True}
        assert q.shape[0] == 1
        assert initial_state.dtype == torch.float32
        bounds = [0, q.shape[1]] if cu_seqlens is None else cu_seqlens.tolist()
        assert len(bounds) - 1 == initial_state.shape[0]
        run = self.gdn if g.dim() == 3 else self.kda
        outs, finals = [], []
        for n, (start, stop) in enumerate(pairwise(bounds)):
            q1, k1, v1, g1, beta1 = (x[:, start:stop] for x in (q, k, v, g, beta))
            state = initial_state[n : n + 1].clone()
            out, final = run(q=q1, k=k1, v=v1, g=g1, beta=beta1, scale=1.0, initial_state=state, output_final_state=True)
            outs.append(out)
            finals.append(final)
        return torch.cat(outs, dim=1), torch.cat(finals)

    def recurrent(
        self,
        q: Any,
        k: Any,
        v: Any,
        *,
        initial_state: Any,
        ssm_state_indices: Any,
        inplace_final_state: bool,
        out: Any,
        **more: Any,
    ) -> Any:
        assert inplace_final_state
        found, finals = self.chunk(q, k, v, initial_state=initial_state[ssm_state_indices], output_final_state=True, **more)
        initial_state[ssm_state_indices] = finals
        return out.copy_(found), initial_state


def fused() -> FusedDelta:
    found = Reference(naive("kda").naive_recurrent_kda, naive("gated_delta_rule").naive_recurrent_gated_delta_rule)
    return FusedDelta(DeltaOps(found.chunk, found.chunk, found.recurrent), torch.float32)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bounds", [(0, 70), (0, 5, 64, 70)])
def test_runs_equal_torchs(per_channel: bool, bounds: tuple[int, ...]) -> None:
    rows = rows_of(70, per_channel=per_channel)
    states = torch.randn(SLOTS, HEADS, KEY, VALUE, generator=generator())
    pairs = pairwise(bounds)
    runs = [DeltaRun(slot, start, stop) for slot, (start, stop) in zip((4, 1, 2), pairs, strict=False)]
    mine, theirs = states.clone(), states.clone()
    torch.testing.assert_close(fused().delta(rows, mine, runs), TorchKernels().delta(rows, theirs, runs), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("per_channel", [True, False])
def test_lone_rows_equal_torchs(per_channel: bool) -> None:
    rows, slots = rows_of(3, per_channel=per_channel), torch.tensor([5, 0, 2])
    states = torch.randn(SLOTS, HEADS, KEY, VALUE, generator=generator())
    mine, theirs = states.clone(), states.clone()
    found, wanted = fused().delta_each(rows, mine, slots), TorchKernels().delta_each(rows, theirs, slots)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def parameters(path: str, function: str) -> set[str]:
    """Names that a function of the package takes, read from its source."""
    tree = ast.parse((package() / path).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    raise AssertionError(f"{path} has no {function} any more")


@pytest.mark.parametrize(
    ("path", "function"),
    [("kda/chunk.py", "chunk_kda"), ("gated_delta_rule/chunk.py", "chunk_gated_delta_rule")],
)
def test_the_package_takes_what_chunks_are_given(path: str, function: str) -> None:
    given = {"q", "k", "v", "g", "beta", "scale", "initial_state", "output_final_state", "cu_seqlens"}
    assert given <= parameters(path, function)


INTERPRETED = """
import warnings
warnings.simplefilter("ignore")
import torch
from prfaas.model.kernels.cuda_delta import FusedDelta, open_delta_ops
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.torch_kernels import TorchKernels
ops = open_delta_ops()
assert ops is not None
draw = torch.Generator().manual_seed(1)
unit = lambda: torch.nn.functional.normalize(torch.randn(3, 2, 16, generator=draw), dim=-1)
slots = torch.tensor([4, 0, 3])
for channels in (16, 1):
    decay, beta = -torch.rand(3, 2, channels, generator=draw), torch.rand(3, 2, generator=draw)
    rows = DeltaRows(unit() * 0.25, unit(), torch.randn(3, 2, 32, generator=draw), decay, beta)
    states = torch.randn(6, 2, 16, 32, generator=draw)
    mine, theirs = states.clone(), states.clone()
    with torch.inference_mode():
        found = FusedDelta(ops, torch.float32).delta_each(rows, mine, slots)
        wanted = TorchKernels().delta_each(rows, theirs, slots)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_lone_rows_in_tritons_interpreter_equal_torchs() -> None:
    package()
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={"TRITON_INTERPRET": "1", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "equal"


def test_without_its_package_the_delta_rule_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla", None)
    rows, slots = rows_of(2, per_channel=True), torch.tensor([1, 2])
    states = torch.randn(SLOTS, HEADS, KEY, VALUE, generator=generator())
    mine, theirs = states.clone(), states.clone()
    found = open_cuda_kernels(torch.bfloat16).delta_each(rows, mine, slots)
    assert torch.equal(found, TorchKernels().delta_each(rows, theirs, slots))
    assert torch.equal(mine, theirs)
