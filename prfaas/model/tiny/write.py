"""Writes a generated model: configuration, safetensors with published names, tokenizer, generation settings.

Every tensor's values follow from (seed, its name) alone. Scales are chosen so that activations stay of order one and
the two best logits are usually far apart compared with rounding errors: greedy output then depends on the whole
prompt, does not fall into a loop, and agrees between implementations.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from prfaas.errors import ModelLoadError
from prfaas.model.tiny import configs
from prfaas.model.tiny.layouts import LAYOUTS
from prfaas.model.tiny.tokenizer import SPECIAL_TOKENS, write_tokenizer

_LOGIT_SPREAD = 4.0  # standard deviation of a logit row
_CENTRED_NORMS = ("Qwen3NextForCausalLM", "Gemma3ForCausalLM")
_KEPT_IN_FLOAT32 = ("A_log", "dt_bias", "e_score_correction_bias")


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A generated model by name. `config` is what config.json will hold."""

    name: str
    config: Mapping[str, Any]
    seed: int = 20260415


TINY_MODELS: Mapping[str, TinyModel] = {
    model.name: model
    for model in (
        TinyModel("tiny-kimi-linear", configs.KIMI_LINEAR),
        TinyModel("tiny-llama", configs.LLAMA),
        TinyModel("tiny-deepseek-v3", configs.DEEPSEEK_V3),
        TinyModel("tiny-qwen3-next", configs.QWEN3_NEXT),
        TinyModel("tiny-gemma3", configs.GEMMA3),
    )
}


def write_tiny_model(name: str, directory: Path | str) -> None:
    """Write the model `name` of TINY_MODELS into `directory`, which is created. Raises ModelLoadError for another name."""
    if name not in TINY_MODELS:
        raise ModelLoadError(f"there is no generated model {name!r}; there are {', '.join(TINY_MODELS)}")
    write_model(TINY_MODELS[name], Path(directory))


def write_model(model: TinyModel, directory: Path) -> None:
    """Write any configuration whose architecture has a layout. The same arguments give the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    config = dict(model.config)
    text = dict(config.get("text_config", config))
    layout = LAYOUTS[config["architectures"][0]]
    centred = config["architectures"][0] in _CENTRED_NORMS
    tensors = {name: _values(model.seed, name, shape, centred=centred) for name, shape in layout(config)}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    generation = {key: text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in text}
    for file_name, document in (("config.json", config), ("generation_config.json", generation)):
        (directory / file_name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    write_tokenizer(directory, int(text.get("max_position_embeddings") or text["model_max_length"]))


def _values(seed: int, name: str, shape: tuple[int, ...], *, centred: bool) -> torch.Tensor:
    """centred: norm weights (but not a DeltaNet's own) are stored as the difference from one."""
    digest = hashlib.sha256(f"{seed}|{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    noise = torch.randn(shape, generator=generator)
    if leaf == "A_log":
        values = torch.empty(shape).uniform_(1.0, 16.0, generator=generator).log()
    elif leaf == "dt_bias":
        values = _inverse_softplus(torch.empty(shape).uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp())
    elif leaf == "e_score_correction_bias":
        values = noise * 0.05
    elif leaf.endswith("conv1d"):
        values = noise * 0.6
    elif leaf == "lm_head":
        values = noise * (_LOGIT_SPREAD * shape[-1] ** -0.5)
        values[: len(SPECIAL_TOKENS)] = 0.0  # markers are never the best choice, so output has a predictable length
    elif "norm" in leaf:
        values = (0.0 if centred and ".linear_attn." not in name else 1.0) + 0.1 * noise
    elif leaf == "embed_tokens":
        values = noise * 0.5
    else:
        values = noise * (1.4 * shape[-1] ** -0.5)
    return values if leaf in _KEPT_IN_FLOAT32 else values.to(torch.bfloat16)


def _inverse_softplus(x: torch.Tensor) -> torch.Tensor:
    return x + torch.log(-torch.expm1(-x))
