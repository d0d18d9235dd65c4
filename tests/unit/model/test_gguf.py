"""GGUF files written by this test from a generated model: they compute what the original directory computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prfaas.errors import ModelLoadError
from prfaas.model.load import describe_model
from prfaas.model.tiny import TINY_MODELS, TinyModel, write_model
from tests.support.model_oracle import load_ours, random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA_NAMES = {
    **LLAMA_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}


def short(name: str, names: dict[str, str]) -> str:
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        number, _, rest = stem.removeprefix("model.layers.").partition(".")
        return f"blk.{number}.{names[rest]}.weight"
    return f"{names[stem]}.weight"


def write_llama(source: Path, target: Path) -> None:
    """As llama.cpp's converter does: q and k rows interleaved for its rope."""
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(4)
    writer.add_context_length(65536)
    writer.add_embedding_length(96)
    writer.add_feed_forward_length(256)
    writer.add_head_count(6)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_eos_token_id(2)
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.float().numpy()
        for part, heads in (("q_proj", 6), ("k_proj", 2)):
            if part in name:
                rows, columns = values.shape
                values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(short(name, LLAMA_NAMES), np.ascontiguousarray(values))
    finish(writer)


def write_gemma3(source: Path, target: Path) -> None:
    """As llama.cpp's converter does: one is added to every norm weight."""
    writer = gguf.GGUFWriter(target, "gemma3")
    writer.add_block_count(6)
    writer.add_context_length(65536)
    writer.add_embedding_length(96)
    writer.add_feed_forward_length(192)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_key_length(24)
    writer.add_value_length(24)
    writer.add_rope_freq_base(1000000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(128)
    for name, tensor in load_file(source / "model.safetensors").items():
        values = tensor.float().numpy() + (1.0 if "norm" in name else 0.0)
        writer.add_tensor(short(name, GEMMA_NAMES), np.ascontiguousarray(values))
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(source: Path) -> torch.Tensor:
    runner = PagedRunner(load_ours(source))
    return runner.run((runner.start(), random_tokens(40, 512)))


def test_llama_rows_are_put_back_in_order(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    write_llama(tiny("tiny-llama"), tmp_path / "x.gguf")
    assert (logits(tmp_path / "x.gguf") - logits(tiny("tiny-llama"))).abs().max() < 1e-4
    spec = describe_model(str(tmp_path / "x.gguf"), served_name="m", block_tokens=16, dtype=None)
    assert (spec.architecture, spec.eos_token_ids, spec.vocab_size) == ("LlamaForCausalLM", (2,), 512)


def test_gemma3_keeps_its_windows(tmp_path: Path) -> None:
    """GGUF has no list of layer kinds: every sixth layer is full, so the original is generated that way too."""
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = {**TINY_MODELS["tiny-gemma3"].config, "layer_types": kinds}
    write_model(TinyModel("gemma", config), tmp_path / "hf")
    write_gemma3(tmp_path / "hf", tmp_path / "x.gguf")
    assert (logits(tmp_path / "x.gguf") - logits(tmp_path / "hf")).abs().max() < 1e-4
    spec = describe_model(str(tmp_path / "x.gguf"), served_name="m", block_tokens=16, dtype=None)
    assert [(g.name, g.layers, g.window_tokens) for g in spec.cache.groups] == [
        ("full", (5,), None),
        ("sliding", (0, 1, 2, 3, 4), 128),
    ]


def test_identity_follows_the_content(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_llama(tiny("tiny-llama"), tmp_path / name)
    first, second = (
        describe_model(str(tmp_path / n), served_name="m", block_tokens=16, dtype=None) for n in ("a.gguf", "b.gguf")
    )
    assert first.fingerprint == second.fingerprint
    raw = bytearray((tmp_path / "b.gguf").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "b.gguf").write_bytes(raw)
    changed = describe_model(str(tmp_path / "b.gguf"), served_name="m", block_tokens=16, dtype=None)
    assert changed.fingerprint.model != first.fingerprint.model


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_block_count(1)
    finish(writer)
    with pytest.raises(ModelLoadError, match="'mamba' is not supported; supported are gemma3, llama, qwen2"):
        describe_model(str(tmp_path / "x.gguf"), served_name="m", block_tokens=16, dtype=None)
