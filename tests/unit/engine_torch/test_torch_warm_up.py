"""What runs before the first request: a full prefill, every batch size, and nothing that a sequence could own changes."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

import torch

from prfaas.config import EngineSettings
from prfaas.engine.torch_backend import TorchBackend
from prfaas.engine.torch_warm_up import warm_up
from prfaas.model.graphed import GraphedDecoder
from prfaas.model.kernels.cuda_kernels import CudaKernels
from prfaas.model.load import load_model
from prfaas.model.recorder import CallRecorder
from tests.support.fake_causal_lm import FakeCausalLM
from tests.support.models import tiny_model

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(("max_running", "batches"), [(1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_a_full_prefill_and_every_batch_size_run(max_running: int, batches: list[int]) -> None:
    model = FakeCausalLM()
    backend = TorchBackend(model, EngineSettings(cache_bytes=1 << 20), None)
    warm_up(backend, max_step_tokens=48, max_running=max_running)
    assert [[segment.num_rows for segment in step.segments] for step in model.steps] == [[48], *([1] * n for n in batches)]
    assert all(segment.context_tokens for step in model.steps[1:] for segment in step.segments)


def test_a_prompt_as_long_as_the_context_allows_is_the_longest() -> None:
    model = FakeCausalLM()
    warm_up(TorchBackend(model, EngineSettings(cache_bytes=1 << 20), None), max_step_tokens=10_000, max_running=1)
    assert model.steps[0].segments[0].num_rows == model.spec.max_context_tokens - 1


@pytest.mark.parametrize("name", ["tiny-kimi-linear", "tiny-gemma3"])
def test_recorded_sizes_are_there_and_the_cache_is_untouched(name: str) -> None:
    network = load_model(
        tiny_model(name),
        served_name="m",
        block_tokens=16,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kernels=CudaKernels(None),
    )
    model = GraphedDecoder(network, CallRecorder(), max_rows=4)
    backend = TorchBackend(model, EngineSettings(cache_bytes=1 << 24, block_tokens=16), None)
    warm_up(backend, max_step_tokens=64, max_running=4)
    assert model.num_recordings == 3
    sizes = backend.pool_sizes()
    for group in network.spec.cache.groups:
        for tensor in group.tensors:
            held = backend._store.layers[group.layers[0]][tensor.name]
            assert not held[: sizes[group.name].device].any()
            assert held[sizes[group.name].device].any()
