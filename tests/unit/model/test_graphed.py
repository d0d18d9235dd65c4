"""Recorded decode steps equal plain ones, for every kind of cache, while batches grow, shrink and outgrow their tables.

The recorder here does on a CPU what a device's does: it writes down the operations of one run, with the addresses and
numbers of that run, and cannot write down a look at a value.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from unittest import mock

import pytest

pytest.importorskip("torch")

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from prfaas.model.graphed import GraphedDecoder
from prfaas.model.kernels.cuda_kernels import CudaKernels
from prfaas.model.kernels.torch_kernels import TorchKernels
from prfaas.model.load import load_model
from prfaas.model.network import DecoderNetwork
from prfaas.model.recorder import CallRecorder, Recording
from prfaas.model.static_step import Bucket
from tests.support.models import tiny_model
from tests.support.paged_runner import PagedRunner, Sequence

pytestmark = pytest.mark.torch

MODELS = ("tiny-llama", "tiny-deepseek-v3", "tiny-kimi-linear", "tiny-qwen3-next", "tiny-gemma3")
BLOCK = 16


def forbidden(tensor: torch.Tensor, *_: object) -> None:
    raise RuntimeError("operation not permitted when stream is capturing")


class TapeRecorder:
    """Operations by make_fx: what is repeated is a list of operations on the very tensors of the first run."""

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        looks = dict.fromkeys(("tolist", "item", "numpy", "cpu", "nonzero", "__bool__", "__int__"), forbidden)
        with mock.patch.multiple(torch.Tensor, **looks):
            tape = make_fx(work)()
        result = tape()

        def replay() -> None:
            result.copy_(tape())

        return Recording(result, replay)


def network(name: str) -> DecoderNetwork:
    return load_model(
        tiny_model(name),
        served_name="m",
        block_tokens=BLOCK,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kernels=CudaKernels(None),
    )


def runner(model: DecoderNetwork | GraphedDecoder) -> PagedRunner:
    """Its last block and slot belong to nobody."""
    made = PagedRunner(model, num_blocks=64, num_slots=9)
    for group in model.spec.cache.groups:
        made.free[group.name].remove(made.num_slots - 1 if group.is_state else made.num_blocks - 1)
    return made


def start(made: PagedRunner, lengths: tuple[int, ...]) -> list[Sequence]:
    rng = random.Random(5)
    sequences = [made.start() for _ in lengths]
    made.run(*((one, rng.choices(range(20, 400), k=length)) for one, length in zip(sequences, lengths, strict=True)))
    return sequences


def decode(made: PagedRunner, sequences: list[Sequence], members: list[int], seed: int) -> torch.Tensor:
    rng = random.Random(seed)
    return made.run(*((sequences[i], [rng.randrange(20, 400)]) for i in members))


@pytest.mark.parametrize("name", MODELS)
def test_replayed_steps_equal_plain_ones_while_batches_change(name: str) -> None:
    plain_network = network(name)
    graphed = GraphedDecoder(plain_network, TapeRecorder(), max_rows=4)
    lengths = (3, 126, 17, 40, 64)
    plain, replayed = runner(plain_network), runner(graphed)
    mine, theirs = start(plain, lengths), start(replayed, lengths)
    batches = [[0], [0, 2], [0, 1, 2], [3, 1, 2, 0], [1], [4, 0], [1, 4, 2], [0, 1, 2, 3, 4], [2], [1], [1, 3, 0], [1, 2, 3, 4]]
    for at, members in enumerate(batches):
        wanted = decode(plain, mine, members, at)
        found = decode(replayed, theirs, members, at)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert set(graphed._recorded) == {Bucket(1, 8), Bucket(2, 8), Bucket(4, 8), Bucket(1, 16), Bucket(4, 16)}
    for group in plain_network.spec.cache.groups:  # what was written, too
        for a, b in zip(mine, theirs, strict=True):
            for layer in group.layers[:1]:
                for tensor in group.tensors:
                    if group.window_tokens is None:
                        torch.testing.assert_close(
                            replayed.entries(b, group.name, layer, tensor.name),
                            plain.entries(a, group.name, layer, tensor.name),
                            rtol=1e-4,
                            atol=1e-4,
                        )


def test_layers_are_told_of_a_replayed_step() -> None:
    graphed = GraphedDecoder(network("tiny-llama"), CallRecorder(), max_rows=4)
    made = runner(graphed)
    sequences = start(made, (5, 6))
    made.layers_seen.clear()
    decode(made, sequences, [0, 1], 1)
    assert made.layers_seen == list(range(graphed.spec.num_layers))


class Unrecordable:
    """What a device says to a capture that it cannot do."""

    def __init__(self) -> None:
        self.tries = 0

    def record(self, work: Callable[[], torch.Tensor]) -> Recording:
        self.tries += 1
        work()
        raise RuntimeError("operation not permitted when stream is capturing")


def test_an_aborted_recording_changes_nothing_and_is_not_tried_again() -> None:
    plain_network, recorder = network("tiny-kimi-linear"), Unrecordable()
    graphed = GraphedDecoder(plain_network, recorder, max_rows=4)
    plain, other = runner(plain_network), runner(graphed)
    mine, theirs = start(plain, (20, 30)), start(other, (20, 30))
    for at in range(3):
        assert torch.equal(decode(other, theirs, [0, 1], at), decode(plain, mine, [0, 1], at))
    assert recorder.tries == 1


def test_kernels_that_look_at_values_cannot_be_recorded() -> None:
    """The tape would otherwise repeat the first step's experts for ever."""
    loaded = load_model(
        tiny_model("tiny-kimi-linear"),
        served_name="m",
        block_tokens=BLOCK,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kernels=TorchKernels(),
    )
    graphed = GraphedDecoder(loaded, TapeRecorder(), max_rows=4)
    made = runner(graphed)
    decode(made, start(made, (20,)), [0], 1)
    assert graphed.num_recordings == 0


def test_mixed_steps_larger_batches_and_first_tokens_go_the_ordinary_way() -> None:
    plain_network = network("tiny-kimi-linear")
    graphed = GraphedDecoder(plain_network, TapeRecorder(), max_rows=2)
    plain, other = runner(plain_network), runner(graphed)
    mine, theirs = start(plain, (20, 30, 5)), start(other, (20, 30, 5))
    for made, group in ((plain, mine), (other, theirs)):
        group.append(made.start())
    parts = [[(0, [21]), (1, [22]), (2, [23])], [(0, [31]), (1, [40, 41, 42])], [(3, [50])]]
    for part in parts:
        wanted = plain.run(*((mine[i], tokens) for i, tokens in part))
        assert torch.equal(other.run(*((theirs[i], tokens) for i, tokens in part)), wanted)
    assert graphed.num_recordings == 0


def test_the_size_not_used_for_longest_goes_and_another_cache_forgets_all() -> None:
    graphed = GraphedDecoder(network("tiny-llama"), CallRecorder(), max_rows=4, max_recordings=2)
    made = runner(graphed)
    sequences = start(made, (5, 6, 7, 8))
    for members in ([0], [0, 1], [0], [0, 1, 2, 3]):
        decode(made, sequences, members, 1)
    assert set(graphed._recorded) == {Bucket(1, 8), Bucket(4, 8)}
    other = runner(graphed)
    decode(other, start(other, (5,)), [0], 1)
    assert set(graphed._recorded) == {Bucket(1, 8)}
