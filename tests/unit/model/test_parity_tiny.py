"""Generated models against transformers: whole prompts, split prefills with decodes, and greedy generation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prfaas.model.tiny import TINY_MODELS
from tests.support.model_oracle import fed_in_pieces, load_ours, load_reference, random_tokens, reference_run
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch

# Logits of the generated models have a standard deviation of 4, so this is 5e-5 of their spread.
TOLERANCE = 2e-4


@pytest.mark.parametrize("name", TINY_MODELS)
def test_logits_equal_transformers_however_the_prompt_is_fed(name: str, tiny: Callable[[str], Path]) -> None:
    directory = tiny(name)
    network, reference = load_ours(directory), load_reference(directory)
    tokens = random_tokens(150, network.spec.vocab_size)
    wanted = reference_run(reference, tokens).logits

    runner = PagedRunner(network)
    whole = runner.run((runner.start(), tokens))
    assert (whole - wanted).abs().max() < TOLERANCE
    assert runner.layers_seen == list(range(network.spec.num_layers))

    split, _, _ = fed_in_pieces(network, tokens, [1, 2, 37, 64, 129, *range(140, 150)])
    assert (split - wanted).abs().max() < TOLERANCE


@pytest.mark.parametrize("name", TINY_MODELS)
def test_greedy_tokens_equal_transformers_and_do_not_loop(name: str, tiny: Callable[[str], Path]) -> None:
    directory = tiny(name)
    network, reference = load_ours(directory), load_reference(directory)
    prompt = random_tokens(70, network.spec.vocab_size, seed=3)
    wanted = reference.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[0, len(prompt) :].tolist()
    runner = PagedRunner(network)
    sequence = runner.start()
    logits = runner.run((sequence, prompt))
    drawn = []
    for _ in range(24):
        drawn.append(int(logits[-1].argmax()))
        logits = runner.run((sequence, [drawn[-1]]))
    assert drawn == wanted
    assert len(set(drawn)) > 12
