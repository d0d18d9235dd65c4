"""Loading takes little more memory than the weights: slices are expanded where they will stay."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import quantize

from prfaas.model.gguf_file import GgufFile
from prfaas.model.registry import gguf_dialect
from prfaas.model.tiny import TINY_MODELS, TinyModel, write_model

pytestmark = pytest.mark.torch

HIDDEN, VOCAB, INNER, LAYERS, HEADS, HEAD_DIM = 512, 24_000, 2048, 4, 6, 96
PROBE = """
import sys, torch, gguf
from pathlib import Path
from prfaas.model.load import load_model

def resident(line):
    entries = dict(entry.split(":", 1) for entry in Path("/proc/self/status").read_text().splitlines())
    return int(entries[line].split()[0]) * 1024

before = resident("VmRSS")
model = load_model(sys.argv[1], served_name="m", block_tokens=64, dtype=torch.float32, device=torch.device("cpu"))
print(resident("VmHWM") - before, model.spec.num_parameters * 4)
"""


def write_big_gguf(path: Path) -> None:
    """A llama of 26 million parameters whose matrices are all Q8_0."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-5)
    rng = np.random.default_rng(0)
    width = HEADS * HEAD_DIM
    shapes = {"token_embd": (VOCAB, HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{norm}": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{part}": (width, HIDDEN) for part in ("attn_q", "attn_k", "attn_v")}
        shapes |= {f"blk.{layer}.{part}": (INNER, HIDDEN) for part in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{layer}.attn_output": (HIDDEN, width), f"blk.{layer}.ffn_down": (HIDDEN, INNER)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{name}.weight", quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_big_directory(path: Path) -> None:
    config = {**TINY_MODELS["tiny-llama"].config, "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INNER}
    write_model(TinyModel("big", config), path)


@pytest.mark.parametrize("write", [write_big_gguf, write_big_directory])
def test_the_peak_of_loading_is_hardly_above_the_weights(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "model")], capture_output=True, text=True, check=True, timeout=120
    )
    grown, weights = map(int, done.stdout.split())
    assert weights > 80 * 1024**2
    assert grown < 1.25 * weights


def test_pieces_are_small_and_together_the_whole_tensor(tmp_path: Path) -> None:
    """Head by head where rows were reordered: a piece never cuts a head of 96 rows in two."""
    write_big_gguf(tmp_path / "x.gguf")
    file = GgufFile(tmp_path / "x.gguf", gguf_dialect)
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"):
        pieces = list(file.pieces(name))
        assert max(piece.numel() for piece in pieces) <= 1 << 18
        assert torch.equal(torch.cat(pieces), file.tensor(name))
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    stored = next(t for t in reader.tensors if t.name == "blk.1.attn_q.weight")
    values = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    straight = torch.unflatten(values, 0, (HEADS, HEAD_DIM // 2, 2)).transpose(1, 2).flatten(0, 2)
    assert len(list(file.pieces("model.layers.1.self_attn.q_proj.weight"))) > 1
    assert torch.equal(file.tensor("model.layers.1.self_attn.q_proj.weight"), straight)
