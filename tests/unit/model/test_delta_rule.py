"""The delta-rule kernels against a token-by-token transcription of the recurrence in float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from prfaas.model.kernels.conv import convolve_chunk, convolve_step
from prfaas.model.kernels.delta_rule import DeltaRows, delta_chunks, delta_step

pytestmark = pytest.mark.torch


def naive(inputs: tuple[torch.Tensor, ...], state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S <- e^g S; u = beta (v - S^T k); S <- S + k u^T; o = S^T q, for each token and head, as written in the paper."""
    query, key, value, decay, beta = (x.double() for x in inputs)
    state = state.double().clone()
    out = torch.zeros(value.shape, dtype=torch.float64)
    for t in range(key.shape[0]):
        for h in range(key.shape[1]):
            s = state[h] * decay[t, h].exp()[:, None]
            u = beta[t, h] * (value[t, h] - s.T @ key[t, h])
            state[h] = s + torch.outer(key[t, h], u)
            out[t, h] = state[h].T @ query[t, h]
    return out, state


def make(
    tokens: int, heads: int, dk: int, dv: int, *, per_channel: bool, rate: float, seed: int = 1
) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    query, key = (torch.nn.functional.normalize(randn(tokens, heads, dk), dim=-1) for _ in range(2))
    decay = -rate * torch.rand(tokens, heads, dk if per_channel else 1, generator=generator)
    return query * dk**-0.5, key, randn(tokens, heads, dv), decay, torch.rand(tokens, heads, generator=generator)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("tokens", [1, 15, 64, 65, 150])
def test_chunks_equal_the_recurrence(tokens: int, per_channel: bool) -> None:
    inputs = make(tokens, 3, 24, 40, per_channel=per_channel, rate=0.5)
    state = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(2))
    wanted, wanted_state = naive(inputs, state)
    out = delta_chunks(DeltaRows(*inputs), state)
    assert (out - wanted).abs().max() < 1e-5
    assert (state - wanted_state).abs().max() < 1e-5


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("rate", [1e-4, 4.0, 60.0])
def test_any_decay_stays_finite_and_right(rate: float, per_channel: bool) -> None:
    """At 60 per token a chunk decays by e^-1900, far past what float32 can hold or invert."""
    inputs = make(130, 2, 16, 8, per_channel=per_channel, rate=rate)
    state = torch.ones(2, 16, 8)
    wanted, wanted_state = naive(inputs, state)
    out = delta_chunks(DeltaRows(*inputs), state)
    assert (out - wanted).abs().max() < 1e-5
    assert (state - wanted_state).abs().max() < 1e-5


def test_more_heads_and_tokens_than_one_group_holds() -> None:
    inputs = make(1100, 9, 4, 6, per_channel=True, rate=0.1)
    state = torch.zeros(9, 4, 6)
    wanted, wanted_state = naive(inputs, state)
    assert (delta_chunks(DeltaRows(*inputs), state) - wanted).abs().max() < 1e-5
    assert (state - wanted_state).abs().max() < 1e-5


@pytest.mark.parametrize("per_channel", [True, False])
def test_steps_equal_chunks_for_several_sequences(per_channel: bool) -> None:
    runs = [make(70, 3, 12, 20, per_channel=per_channel, rate=0.3, seed=s) for s in (5, 6)]
    chunked = [torch.zeros(3, 12, 20) for _ in runs]
    wanted = torch.stack([delta_chunks(DeltaRows(*run), state) for run, state in zip(runs, chunked, strict=True)], dim=1)
    states = torch.zeros(2, 3, 12, 20)
    steps = [delta_step(DeltaRows(*(torch.stack([run[i][t] for run in runs]) for i in range(5))), states) for t in range(70)]
    assert (torch.stack(steps) - wanted).abs().max() < 1e-5
    assert (states - torch.stack(chunked)).abs().max() < 1e-5


def test_a_state_handed_over_at_a_chunk_boundary_is_exact() -> None:
    inputs = make(192, 2, 16, 16, per_channel=True, rate=0.2)
    whole, halves = torch.zeros(2, 16, 16), torch.zeros(2, 16, 16)
    out = delta_chunks(DeltaRows(*inputs), whole)
    parts = [delta_chunks(DeltaRows(*inputs).part(slice(a, b)), halves) for a, b in ((0, 128), (128, 192))]
    assert torch.equal(torch.cat(parts), out)
    assert torch.equal(halves, whole)


def fla_naive(folder: str) -> Any:
    """fla-core's own plain-torch file, loaded past the package that needs a GPU compiler."""
    pytest.importorskip("einops")
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("fla-core is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / "ops" / folder / "naive.py"
    loaded = importlib.util.spec_from_file_location(f"fla_naive_{folder}", path)
    assert loaded is not None
    assert loaded.loader is not None
    module = importlib.util.module_from_spec(loaded)
    loaded.loader.exec_module(module)
    return module


@pytest.mark.parametrize("per_channel", [True, False])
def test_chunks_equal_the_published_naive_kernels(per_channel: bool) -> None:
    query, key, value, decay, beta = make(128, 3, 24, 24, per_channel=per_channel, rate=0.5)
    state = torch.zeros(3, 24, 24)
    out = delta_chunks(DeltaRows(query, key, value, decay, beta), state)
    module = fla_naive("kda" if per_channel else "gated_delta_rule")
    run = module.naive_recurrent_kda if per_channel else module.naive_recurrent_gated_delta_rule
    gate = decay if per_channel else decay.squeeze(-1)
    names = {"g": gate[None], "beta": beta[None], "output_final_state": True, "scale": 1.0}
    wanted, wanted_state = run(query[None], key[None], value[None], **names)
    assert (out - wanted[0]).abs().max() < 1e-5
    assert (state - wanted_state[0]).abs().max() < 1e-5


def test_convolution_equals_torch_and_carries_its_history() -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(20, 6, generator=generator), torch.randn(4, 6, generator=generator)
    padded = torch.nn.functional.pad(x.T[None], (3, 0))
    wanted = torch.nn.functional.silu(torch.nn.functional.conv1d(padded, weight.T[:, None], groups=6))[0].T
    history = torch.zeros(3, 6)
    first, history = convolve_chunk(x[:2], history, weight)  # shorter than the history itself
    second, history = convolve_chunk(x[2:19], history, weight)
    third, last = convolve_step(x[19:], history[None], weight)
    assert torch.allclose(torch.cat((first, second, third)), wanted, atol=1e-6)
    assert torch.equal(last[0], x[17:])
