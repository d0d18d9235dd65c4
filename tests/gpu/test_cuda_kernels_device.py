"""The accelerator's kernels on an accelerator, against torch's on the same numbers, and recorded steps against plain ones."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from prfaas.model.graphed import GraphedDecoder
from prfaas.model.kernels.attention import attend_prefill
from prfaas.model.kernels.cuda_attention import attend_causal
from prfaas.model.kernels.delta_rule import DeltaRows
from prfaas.model.kernels.kernel_set import DeltaRun
from prfaas.model.kernels.open_kernels import open_cuda_kernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.load import load_model
from prfaas.model.recorder import CudaRecorder
from tests.support.models import tiny_model
from tests.support.paged_runner import PagedRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator here"),
]

HEADS, KEY, VALUE = 4, 64, 64
MODELS = ("tiny-kimi-linear", "tiny-deepseek-v3", "tiny-qwen3-next", "tiny-gemma3", "tiny-llama")
WITH_EXPERTS = ("tiny-kimi-linear", "tiny-deepseek-v3", "tiny-qwen3-next")


def delta_rows(tokens: int, channels: int) -> DeltaRows:
    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(tokens, HEADS, KEY, device="cuda"), dim=-1)

    decay, beta = -torch.rand(tokens, HEADS, channels, device="cuda"), torch.rand(tokens, HEADS, device="cuda")
    return DeltaRows(unit() * KEY**-0.5, unit(), torch.randn(tokens, HEADS, VALUE, device="cuda"), decay, beta)


@pytest.mark.parametrize("channels", [KEY, 1])
@pytest.mark.parametrize("bounds", [(0, 300), (0, 65, 300)])
def test_fused_runs_equal_torchs_within_bfloat16(channels: int, bounds: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    rows, states = delta_rows(bounds[-1], channels), torch.randn(4, HEADS, KEY, VALUE, device="cuda")
    runs = [DeltaRun(2 - n, start, stop) for n, (start, stop) in enumerate(pairwise(bounds))]
    mine, theirs = states.clone(), states.clone()
    with torch.inference_mode():
        found = open_cuda_kernels(torch.bfloat16).delta(rows, mine, runs)
        wanted = TorchKernels().delta(rows, theirs, runs)
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)
    assert torch.equal(mine[3], states[3])


@pytest.mark.parametrize("channels", [KEY, 1])
def test_fused_lone_rows_equal_torchs_within_bfloat16(channels: int) -> None:
    torch.manual_seed(2)
    rows, slots = delta_rows(3, channels), torch.tensor([5, 0, 3], device="cuda")
    states = torch.randn(7, HEADS, KEY, VALUE, device="cuda")
    mine, theirs = states.clone(), states.clone()
    with torch.inference_mode():
        found = open_cuda_kernels(torch.bfloat16).delta_each(rows, mine, slots)
        wanted = TorchKernels().delta_each(rows, theirs, slots)
    torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
    torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)


def test_grouped_experts_equal_torchs() -> None:
    torch.manual_seed(3)
    x = torch.randn(50, 128, device="cuda", dtype=torch.bfloat16)
    gate_up, down = (0.1 * torch.randn(8, *shape, device="cuda", dtype=torch.bfloat16) for shape in ((2 * 64, 128), (128, 64)))
    ids = torch.stack([torch.randperm(7, device="cuda")[:2] for _ in range(50)])
    weights = torch.rand(50, 2, device="cuda")
    found = open_cuda_kernels(torch.bfloat16).experts(x, ids, weights, gate_up, down)
    torch.testing.assert_close(found, TorchKernels().experts(x, ids, weights, gate_up, down), rtol=0.03, atol=0.03)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2)])
@pytest.mark.parametrize(("rows", "past"), [(1, 0), (65, 0), (65, 700)])
def test_causal_attention_equals_the_processors(rows: int, past: int, heads: int, kv_heads: int) -> None:
    torch.manual_seed(4)
    query = torch.randn(rows, heads, 64)
    key, value = (torch.randn(past + rows, kv_heads, 64) for _ in range(2))
    wanted = attend_prefill(query, key[past:], value[past:], key[:past], value[:past], 0.125)
    found = attend_causal(*(x.to("cuda", torch.bfloat16) for x in (query, key, value)), 0.125)
    torch.testing.assert_close(found.float().cpu(), wanted, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("name", MODELS)
def test_recorded_steps_equal_plain_ones(name: str) -> None:
    dtype, device = torch.bfloat16, torch.device("cuda")
    if name in WITH_EXPERTS and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("grouped products look at their sizes before Hopper")
    kernels = open_cuda_kernels(dtype)
    network = load_model(tiny_model(name), served_name="m", block_tokens=16, dtype=dtype, device=device, kernels=kernels)
    graphed = GraphedDecoder(network, CudaRecorder(device), max_rows=4)
    plain, recorded = (PagedRunner(model, num_blocks=64, num_slots=9) for model in (network, graphed))
    rng, lengths = random.Random(5), (3, 126, 17, 40)
    pairs = []
    for made in (plain, recorded):
        for group in network.spec.cache.groups:
            made.free[group.name].remove(8 if group.is_state else 63)
        pairs.append([made.start() for _ in lengths])
    prompts = [rng.choices(range(20, 400), k=length) for length in lengths]
    for made, sequences in zip((plain, recorded), pairs, strict=True):
        made.run(*zip(sequences, prompts, strict=True))
    for members in ([0], [0, 2], [3, 1, 2, 0], [1], [1, 2, 3], [0], [1, 2]):
        tokens = [rng.randrange(20, 400) for _ in members]
        wanted, found = (
            made.run(*((sequences[i], [token]) for i, token in zip(members, tokens, strict=True))).clone()
            for made, sequences in zip((plain, recorded), pairs, strict=True)
        )
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.1)
    assert graphed.num_recordings > 0
