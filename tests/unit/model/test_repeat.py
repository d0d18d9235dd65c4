"""Recorded decode steps: the same bits as ordinary ones, and no recording of what cannot be repeated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prfaas.model.api import CausalLM
from prfaas.model.kernels.kernel_set import Kernels, Recorded
from prfaas.model.kernels.native_kernels import NativeKernels
from prfaas.model.kernels.native_library import NativeLibrary, open_library
from prfaas.model.kernels.recording import Observer
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.load import load_model
from tests.support.model_oracle import random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch


class CountedKernels(NativeKernels):
    """Counts the attention that is asked for from Python."""

    num_attends = 0

    def attend(self, call: object) -> torch.Tensor:
        self.num_attends += 1
        return super().attend(call)  # type: ignore[arg-type]


class PlainKernels(NativeKernels):
    """Without recording."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recorded:
        return Recorded(work(), None)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> NativeLibrary:
    library = open_library(tmp_path_factory.mktemp("native"))
    if library is None:
        pytest.skip("no compiler or no AVX512-BF16 here")
    return library


def network(directory: Path, kernels: Kernels) -> CausalLM:
    return load_model(
        str(directory), served_name="m", block_tokens=16, dtype=torch.bfloat16, device=torch.device("cpu"), kernels=kernels
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_a_repeated_step_has_the_bits_of_an_ordinary_one(
    library: NativeLibrary, tiny: Callable[[str], Path], threads: int
) -> None:
    counted = CountedKernels(library, threads)
    models = network(tiny("tiny-llama"), counted), network(tiny("tiny-llama"), PlainKernels(library, threads))
    runners = [PagedRunner(model, num_blocks=200) for model in models]
    sequences = [[runner.start() for _ in range(3)] for runner in runners]
    for runner, (first, second, third) in zip(runners, sequences, strict=True):
        runner.run((first, random_tokens(70, 512)), (second, random_tokens(9, 512)), (third, random_tokens(1200, 512)))
    counted.num_attends = 0
    for at, rows in enumerate([3, 1, 2, 3, 1, 2, 1, 3]):
        repeated, ordinary = (
            runner.run(*[(sequence, [20 + at]) for sequence in group[-rows:]])
            for runner, group in zip(runners, sequences, strict=True)
        )
        assert torch.equal(repeated, ordinary)
    assert counted.num_attends == 3 * models[0].spec.num_layers  # recorded once for each number of rows
    for ours, wanted in zip(runners[0].cache, runners[1].cache, strict=True):
        assert all(torch.equal(ours[name], wanted[name]) for name in ours)
    assert runners[0].layers_seen == runners[1].layers_seen


def test_a_longer_sequence_and_another_cache_are_recorded_anew(library: NativeLibrary, tiny: Callable[[str], Path]) -> None:
    counted = CountedKernels(library, 1)
    models = network(tiny("tiny-llama"), counted), network(tiny("tiny-llama"), PlainKernels(library, 1))
    layers = models[0].spec.num_layers
    runners = [PagedRunner(model, num_blocks=200) for model in (*models, models[0])]
    short, plain, _ = (runner.start() for runner in runners)

    def step(at: int, *parts: object) -> torch.Tensor:
        return runners[at].run(*parts)  # type: ignore[arg-type]

    step(0, (short, random_tokens(20, 512)))
    step(1, (plain, random_tokens(20, 512)))
    counted.num_attends = 0
    assert torch.equal(step(0, (short, [9])), step(1, (plain, [9])))
    assert counted.num_attends == layers
    for at, sequence in ((0, short), (1, plain)):
        step(at, (sequence, random_tokens(1100, 512, seed=1)))
    counted.num_attends = 0
    assert torch.equal(step(0, (short, [8])), step(1, (plain, [8])))
    assert counted.num_attends == layers  # 70 blocks are more than a new frame has room for
    elsewhere = runners[2].start()
    step(2, (elsewhere, random_tokens(1121, 512)))
    counted.num_attends = 0
    step(2, (elsewhere, [8]))
    assert counted.num_attends == layers


@pytest.mark.parametrize("name", ["tiny-kimi-linear", "tiny-deepseek-v3", "tiny-qwen3-next"])
def test_a_network_that_torch_takes_part_in_is_never_repeated(
    library: NativeLibrary, tiny: Callable[[str], Path], name: str
) -> None:
    models = network(tiny(name), NativeKernels(library, 1)), network(tiny(name), PlainKernels(library, 1))
    runners = [PagedRunner(model) for model in models]
    sequences = [runner.start() for runner in runners]
    for tokens in (random_tokens(30, 512), [9], [10], [11]):
        ours, wanted = (runner.run((s, tokens)) for runner, s in zip(runners, sequences, strict=True))
        assert torch.equal(ours, wanted)


def test_torch_kernels_do_the_work_and_do_not_repeat() -> None:
    recorded = TorchKernels().record(lambda: torch.ones(3))
    assert torch.equal(recorded.result, torch.ones(3))
    assert recorded.repeat is None


X = torch.arange(24.0).view(2, 12)
PURE: dict[str, Callable[[], object]] = {
    "views": lambda: X.view(2, 4, 3).split_with_sizes((2, 1, 1), dim=1)[0].unsqueeze(0).flatten(0, 1),
    "memory": lambda: torch.empty_like(torch.empty(3)),
}
IMPURE: dict[str, Callable[[], object]] = {
    "computes": lambda: X + 1,
    "writes": lambda: torch.empty(2).fill_(1.0),
    "a reshape that copies": lambda: X.transpose(0, 1).reshape(-1),
    "converts": X.bfloat16,
    "reads a value": X.view(-1)[3].item,
    "reads values": X.tolist,
    "brings values": lambda: torch.tensor([1, 2]),
}


@pytest.mark.parametrize("name", [*PURE, *IMPURE])
def test_what_counts_as_kernels_only(name: str) -> None:
    with torch.inference_mode(), Observer() as observer:
        (PURE | IMPURE)[name]()
    assert observer.only_kernels == (name in PURE)


def test_what_is_recorded_is_repeated_on_the_memory_it_had(library: NativeLibrary) -> None:
    kernels = NativeKernels(library, 2)
    x, weight, norm = torch.randn(2, 64).bfloat16(), torch.randn(48, 64).bfloat16(), torch.rand(64)
    with torch.inference_mode():
        recorded = kernels.record(lambda: kernels.linear(kernels.rms_norm(x, norm, 1e-5), weight, None))
        assert recorded.repeat is not None
        taken = [torch.zeros(2, 64, dtype=torch.bfloat16) for _ in range(50)]  # whatever was free is somebody else's now
        x.copy_(torch.randn(2, 64))
        recorded.repeat()
        assert torch.equal(recorded.result, kernels.linear(kernels.rms_norm(x, norm, 1e-5), weight, None))
        assert not any(t.any() for t in taken)


def test_a_failure_while_recording_ends_the_recording(library: NativeLibrary) -> None:
    kernels = NativeKernels(library, 1)
    with pytest.raises(ZeroDivisionError):
        kernels.record(lambda: torch.ones(1) * (1 // 0))
    x, weight = torch.randn(1, 8).bfloat16(), torch.rand(8)
    kernels.rms_norm(x, weight, 1e-5)  # belongs to no recording
    recorded = kernels.record(lambda: kernels.rms_norm(x, weight, 1e-5))
    assert recorded.repeat is not None
