"""The demo model as shipped, a quantised GGUF file, against transformers' own reading of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import transformers

from prfaas.config import cache_dir
from prfaas.model.load import describe_model, load_model
from tests.support.model_oracle import random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = [pytest.mark.torch, pytest.mark.demo_model]


@pytest.fixture(scope="module")
def demo_file() -> Path:
    """$PRFAAS_TEST_DEMO_MODEL, or the fetched copy in the cache directory."""
    named = os.environ.get("PRFAAS_TEST_DEMO_MODEL")
    found = [Path(named)] if named else sorted(cache_dir().rglob("SmolLM2-135M-Instruct*.gguf"))
    if not found:
        pytest.skip("the demo model has not been fetched")
    return found[0]


def test_description_matches_the_published_model(demo_file: Path) -> None:
    spec = describe_model(str(demo_file), served_name="smollm2", block_tokens=64, dtype=torch.bfloat16)
    assert (spec.num_layers, spec.vocab_size, spec.max_context_tokens) == (30, 49152, 8192)
    assert spec.cache.request_bytes(1000) == 1000 * 23_040
    assert spec.num_parameters == 134_515_008
    assert spec.eos_token_ids == (2,)


def test_logits_equal_transformers(demo_file: Path) -> None:
    network = load_model(str(demo_file), served_name="m", block_tokens=64, dtype=torch.float32, device=torch.device("cpu"))
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        demo_file.parent, gguf_file=demo_file.name, dtype=torch.float32
    ).eval()
    tokens = random_tokens(90, network.spec.vocab_size)
    with torch.no_grad():
        wanted = reference(torch.tensor([tokens])).logits[0]
    runner = PagedRunner(network, num_blocks=8)
    sequence = runner.start()
    rows = [runner.run((sequence, piece)) for piece in (tokens[:70], tokens[70:89], tokens[89:])]
    assert (torch.cat(rows) - wanted).abs().max() < 2e-3 * wanted.std()
