"""Quantised checkpoints: 4-bit experts and block-scaled float8, unpacked as their formats say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prfaas.errors import ModelLoadError
from prfaas.model.kernels.dequantize import expand_fp8_blocks, expand_int4, unpack_int4
from prfaas.model.layers.moe import MixtureOfExperts, PackedExperts
from prfaas.model.load import describe_model
from prfaas.model.tiny import TINY_MODELS, TinyModel, write_model
from tests.support.model_oracle import load_ours, random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch

INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}}
    },
}


def pack(values: torch.Tensor) -> torch.Tensor:
    """Eight values in [-8, 7] per int32, least significant first, offset by 8: built digit by digit in Python."""
    words = []
    for row in values.tolist():
        for start in range(0, len(row), 8):
            word = sum((v + 8) << (4 * j) for j, v in enumerate(row[start : start + 8]))
            words.append(word - (1 << 32) if word >= 1 << 31 else word)
    return torch.tensor(words, dtype=torch.int32).view(values.shape[0], -1)


def test_unpacking_matches_a_word_written_by_hand() -> None:
    # Nibbles 0x8, 0x9, 0xF, 0x0, 0x7, 0x1, 0x2, 0xE from the least significant up, each minus 8.
    word = 0xE2170F98 - (1 << 32)
    assert unpack_int4(torch.tensor([[word]], dtype=torch.int32)).tolist() == [[0, 1, 7, -8, -1, -7, -6, 6]]


def test_unpacking_inverts_packing_and_scales_by_group() -> None:
    values = torch.randint(-8, 8, (6, 64), generator=torch.Generator().manual_seed(0))
    scale = torch.rand(6, 2, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    wanted = values * scale.float().repeat_interleave(32, dim=1)
    assert torch.equal(unpack_int4(pack(values)), values.to(torch.int8))
    assert torch.equal(expand_int4(pack(values), scale, torch.float32), wanted)


def test_unpacking_equals_compressed_tensors() -> None:
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    values = torch.randint(-8, 8, (5, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = helpers.pack_to_int32(values, 4)
    assert torch.equal(unpack_int4(packed), helpers.unpack_from_int32(packed, 4, values.shape))


def test_float8_blocks_cover_ragged_edges() -> None:
    weight = torch.randn(130, 70, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.tensor([[2.0, 0.5], [4.0, 1.0], [0.25, 8.0]])
    wide = expand_fp8_blocks(weight, scale, (64, 64), torch.float32)
    for row, column in ((0, 0), (63, 63), (64, 64), (129, 69), (128, 0)):
        assert wide[row, column] == weight[row, column].float() * scale[row // 64, column // 64]


def quantize_experts(directory: Path) -> tuple[Path, Path]:
    """Two copies of tiny-deepseek-v3: routed experts in 4 bits, and the same values expanded by this test."""
    source = directory / "source"
    write_model(TINY_MODELS["tiny-deepseek-v3"], source)
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    packed, plain = {}, {}
    for name, weight in tensors.items():
        if ".experts." not in name:
            packed[name] = plain[name] = weight
            continue
        scale = (weight.float().unflatten(1, (-1, 32)).abs().amax(-1) / 7).to(torch.bfloat16)
        wide = scale.float().repeat_interleave(32, dim=1)
        values = (weight.float() / wide).round().clamp(-8, 7).long()
        packed |= {f"{name}_packed": pack(values), f"{name}_scale": scale, f"{name}_shape": torch.tensor(weight.shape)}
        plain[name] = values * wide
    outputs = []
    for label, content, extra in (("packed", packed, {"quantization_config": INT4}), ("plain", plain, {})):
        target = directory / label
        target.mkdir()
        (target / "config.json").write_text(json.dumps({**config, **extra}))
        save_file(content, target / "model.safetensors")
        outputs.append(target)
    return outputs[0], outputs[1]


def test_packed_experts_stay_packed_and_compute_the_same(tmp_path: Path) -> None:
    packed_dir, plain_dir = quantize_experts(tmp_path)
    packed, plain = load_ours(packed_dir), load_ours(plain_dir)
    experts = [b.ffn.experts for b in packed.blocks if isinstance(b.ffn, MixtureOfExperts)]
    assert experts
    assert all(isinstance(e, PackedExperts) for e in experts)
    assert packed.spec.num_parameters == plain.spec.num_parameters
    tokens = random_tokens(40, packed.spec.vocab_size)
    results = [(runner := PagedRunner(model)).run((runner.start(), tokens)) for model in (packed, plain)]
    assert (results[0] - results[1]).abs().max() < 1e-4


def test_float8_checkpoint_loads_as_its_expanded_copy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write_model(TINY_MODELS["tiny-deepseek-v3"], source)
    config, tensors = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")
    small, plain = {}, {}
    for name, weight in tensors.items():
        small[name] = plain[name] = weight
        if "_proj.weight" in name:
            scale = torch.rand(-(-weight.shape[0] // 16), -(-weight.shape[1] // 16)) + 0.5
            wide = scale.repeat_interleave(16, 0)[: weight.shape[0]].repeat_interleave(16, 1)[:, : weight.shape[1]]
            small[name] = (weight.float() / wide).to(torch.float8_e4m3fn)
            small[f"{name}_scale_inv"] = scale
            plain[name] = small[name].float() * wide
    quantization = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    for label, content, extra in (("small", small, {"quantization_config": quantization}), ("plain", plain, {})):
        (tmp_path / label).mkdir()
        (tmp_path / label / "config.json").write_text(json.dumps({**config, **extra}))
        save_file(content, tmp_path / label / "model.safetensors")
    models = [load_ours(tmp_path / label) for label in ("small", "plain")]
    tokens = random_tokens(40, models[0].spec.vocab_size)
    results = [(runner := PagedRunner(model)).run((runner.start(), tokens)) for model in models]
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize(
    ("quantization", "word"),
    [
        ({"quant_method": "gptq"}, "gptq"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24", "config_groups": {}}, "marlin-24"),
        (
            {
                **INT4,
                "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group"}}},
            },
            "num_bits",
        ),
    ],
)
def test_other_formats_are_refused_by_name(quantization: dict[str, object], word: str, tmp_path: Path) -> None:
    model = TINY_MODELS["tiny-llama"]
    write_model(TinyModel("q", {**model.config, "quantization_config": quantization}), tmp_path)
    with pytest.raises(ModelLoadError, match=word):
        load_ours(tmp_path)
    assert describe_model(str(tmp_path), served_name="m", block_tokens=16, dtype=None).num_layers == 4
