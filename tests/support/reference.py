"""Greedy continuations by `transformers` on the same weights: the independent answer that every route must give."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=2)
def reference_model(source: str) -> Any:
    """`source` as a float32 transformers model: a Hugging Face directory or a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    path = Path(source)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "sdpa"}
    if path.suffix == ".gguf":
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), **options
        )
    else:
        model = AutoModelForCausalLM.from_pretrained(path, **options)
    return model.eval()


def prompt(num_tokens: int, vocab: int, seed: int = 5) -> tuple[int, ...]:
    """Random token ids, the same ones for every test that asks for this length and vocabulary."""
    rng = random.Random(f"{seed}/{num_tokens}")
    return tuple(rng.randrange(10, vocab) for _ in range(num_tokens))


def greedy(source: str, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """Token ids that greedy decoding appends to `prompt`, never stopping early. Remembered: long prompts take seconds."""
    return list(_greedy(source, tuple(prompt), max_tokens))


@lru_cache(maxsize=64)
def _greedy(source: str, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    import torch

    model = reference_model(source)
    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        answer = model(ids, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        found = [int(answer.logits[0, -1].argmax())]
        while len(found) < max_tokens:
            answer = model(torch.tensor([[found[-1]]]), past_key_values=cache, use_cache=True)
            found.append(int(answer.logits[0, -1].argmax()))
    return tuple(found)
