"""Opening model files: descriptions, identities, and errors that say what is wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from prfaas.errors import ModelLoadError
from prfaas.model.load import describe_model, load_model
from prfaas.model.registry import all_families, family_for
from prfaas.model.tiny import TINY_MODELS, write_tiny_model
from prfaas.modelspec import DType, GroupKind, ModelSpec
from tests.support.model_oracle import load_ours, random_tokens
from tests.support.paged_runner import PagedRunner

pytestmark = pytest.mark.torch


def describe(directory: Path, dtype: torch.dtype | None = None) -> ModelSpec:
    return describe_model(str(directory), served_name="m", block_tokens=16, dtype=dtype)


@pytest.fixture
def copy(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A model's directory that the test may damage."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(tiny(name), tmp_path / name))

    return make


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_description_of_kimi_linear(tiny: Callable[[str], Path]) -> None:
    spec = describe(tiny("tiny-kimi-linear"))
    full, state = spec.cache.groups
    assert (full.name, full.kind, full.layers) == ("full", GroupKind.FULL, (2, 5))
    assert (state.name, state.kind, state.layers) == ("state", GroupKind.STATE, (0, 1, 3, 4))
    assert [(t.name, t.shape, t.dtype) for t in full.tensors] == [("latent", (80,), DType.BF16)]
    assert [(t.name, t.shape, t.dtype) for t in state.tensors] == [
        ("recurrent", (4, 32, 32), DType.F32),
        ("conv", (3, 384), DType.BF16),
    ]
    assert spec.max_context_tokens == 65536
    assert spec.eos_token_ids == (2,)
    assert spec.cache.request_bytes(1000) == 1000 * 2 * 80 * 2 + 4 * (4 * 32 * 32 * 4 + 3 * 384 * 2)
    assert load_ours(tiny("tiny-kimi-linear"), dtype=torch.bfloat16).spec == spec


def test_published_geometries_have_the_published_cache_sizes(tmp_path: Path) -> None:
    """Kimi-Linear-48B: 8,064 bytes per token and 41.4 MiB of state; Kimi K2: 70,272 bytes per token."""
    for name, fields, per_token, constant in (
        (
            "tiny-kimi-linear",
            {
                "num_hidden_layers": 27,
                "num_attention_heads": 32,
                "kv_lora_rank": 512,
                "qk_rope_head_dim": 64,
                "linear_attn_config": {
                    "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
                    "kda_layers": [i for i in range(1, 27) if i % 4],
                    "head_dim": 128,
                    "num_heads": 32,
                    "short_conv_kernel_size": 4,
                },
            },
            8064,
            20 * (2 * 1024**2 + 72 * 1024),
        ),
        ("tiny-deepseek-v3", {"num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64}, 70_272, 0),
    ):
        directory = tmp_path / name
        write_tiny_model(name, directory)
        edit_config(directory, **fields)
        cache = describe(directory).cache
        assert cache.request_bytes(2) - cache.request_bytes(1) == per_token
        assert cache.request_bytes(1) - per_token == constant


@pytest.mark.parametrize("name", TINY_MODELS)
def test_generated_models_are_the_same_every_time_and_transformers_takes_all_of_them(
    name: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    write_tiny_model(name, tmp_path)
    for path in sorted(tiny(name).iterdir()):
        mine = hashlib.sha256((tmp_path / path.name).read_bytes()).hexdigest()
        assert hashlib.sha256(path.read_bytes()).hexdigest() == mine, path.name
    _, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_the_generated_tokenizer_is_loadable_and_has_a_chat_template(tiny: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny("tiny-kimi-linear"))
    text = "The naïve café: 你好 🙂\n\tdone"
    assert len(tokenizer) == 512
    assert tokenizer.decode(tokenizer.encode(text)) == text
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.encode("<|im_end|>") == [tokenizer.eos_token_id] == [2]


def test_fingerprint_ignores_how_it_was_saved_and_notices_what_matters(copy: Callable[[str], Path]) -> None:
    directory = copy("tiny-llama")
    first = describe(directory).fingerprint
    assert describe(directory, torch.float32).fingerprint == first
    edit_config(directory, transformers_version="9", dtype="float32", use_cache=False)
    assert describe(directory).fingerprint == first

    edit_config(directory, rms_norm_eps=1e-4)
    config = describe(directory).fingerprint
    assert (config.model != first.model, config.tokenizer, config.cache) == (True, first.tokenizer, first.cache)

    edit_weights(directory, lambda t: t["model.norm.weight"].mul_(2))
    weights = describe(directory).fingerprint
    assert (weights.model != config.model, weights.tokenizer, weights.cache) == (True, first.tokenizer, first.cache)

    tokenizer = directory / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text().replace("assistant", "helper"))
    assert describe(directory).fingerprint.tokenizer != first.tokenizer


def test_shards_and_one_file_compute_the_same(copy: Callable[[str], Path]) -> None:
    directory = copy("tiny-llama")
    whole = load_ours(directory)
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{1 + i % 2}-of-2.safetensors" for i, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({n: tensors[n] for n in names if weight_map[n] == shard}, directory / shard)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    tokens = random_tokens(20, 512)
    results = [(runner := PagedRunner(model)).run((runner.start(), tokens)) for model in (whole, load_ours(directory))]
    assert torch.equal(results[0], results[1])


def test_weights_that_need_no_conversion_stay_mapped(tiny: Callable[[str], Path]) -> None:
    """Two loads of one file share the file's pages: neither owns a copy of the embedding."""
    one, two = (load_ours(tiny("tiny-llama"), dtype=torch.bfloat16) for _ in range(2))
    smaps = Path("/proc/self/maps").read_text()
    for network in (one, two):
        address = network.embedding.data_ptr()
        lines = [line for line in smaps.splitlines() if line.endswith("model.safetensors")]
        spans = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in lines]
        assert any(low <= address < high for low, high in spans)


def damage(directory: Path, kind: str) -> None:
    weights = directory / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "garbage":
        weights.write_bytes(b"\xff" * 64)
    elif kind == "no weights":
        weights.unlink()
    elif kind == "no config":
        (directory / "config.json").unlink()
    elif kind == "missing tensor":
        edit_weights(directory, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    elif kind == "extra tensor":
        edit_weights(directory, lambda t: t.update({"model.layers.1.extra.weight": torch.zeros(3)}))
    elif kind == "shape":
        edit_config(directory, intermediate_size=128)
    elif kind == "architecture":
        edit_config(directory, architectures=["GPT2LMHeadModel"])
    elif kind == "missing key":
        edit_config(directory, hidden_size=None)
    elif kind == "wrong type":
        edit_config(directory, hidden_size="96")
    elif kind == "rope":
        edit_config(directory, rope_scaling={"rope_type": "dynamic", "factor": 2.0})


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "truncated"),
        ("garbage", "not a readable safetensors file"),
        ("no weights", "no safetensors weights"),
        ("no config", "config.json"),
        ("missing tensor", "has no tensor model.layers.1.mlp.up_proj.weight"),
        ("extra tensor", r"1 tensors .* no place .*extra"),
        ("shape", r"has shape \(256, 96\), the configuration asks for \(128, 96\)"),
        ("architecture", "GPT2LMHeadModel is not supported; supported are"),
        ("missing key", "has no hidden_size"),
        ("wrong type", "hidden_size must be a whole number, not str"),
        ("rope", "dynamic"),
    ],
)
def test_errors_say_what_is_wrong(kind: str, words: str, copy: Callable[[str], Path]) -> None:
    directory = copy("tiny-llama")
    damage(directory, kind)
    with pytest.raises(ModelLoadError, match=words):
        load_ours(directory)


def test_a_source_that_is_not_there_or_not_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="neither a model directory nor a GGUF file"):
        describe(tmp_path / "nowhere")
    file = tmp_path / "x.gguf"
    file.write_bytes(b"not a gguf file at all" * 10)
    with pytest.raises(ModelLoadError, match="not a readable GGUF file"):
        describe(file)
    with pytest.raises(ModelLoadError, match="no generated model 'tiny-nothing'"):
        write_tiny_model("tiny-nothing", tmp_path)


def test_integer_dtypes_are_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ModelLoadError, match="cannot compute in"):
        load_model(str(tiny("tiny-llama")), served_name="m", block_tokens=16, dtype=torch.int8, device=torch.device("cpu"))


def test_no_architecture_is_claimed_twice() -> None:
    claimed = [name for family in all_families() for name in family.architectures]
    assert len(claimed) == len(set(claimed))
    assert family_for({"architectures": ["Unknown", "KimiLinearForCausalLM"]})[0].name == "kimi_linear"
