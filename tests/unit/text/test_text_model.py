"""Loading text models from directories and GGUF files, templates included."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models

from prfaas.errors import InvalidRequest, ModelLoadError, UnsupportedParameter
from prfaas.text import TextModel, load_text_model
from tests.support.gguf_header import write_gguf_header
from tests.support.text_models import CHATML, byte_level_tokenizer, write_text_model

TEXTS = ["The capital of France", "größer 😀 12345", "  two  spaces\n\n\tand tabs ", "日本語 text", "", "don't we're I'LL"]


def byte_level_pairs(rule: str = "gpt-2") -> dict[str, Any]:
    """A GGUF header for the test tokenizer, whose split is GPT-2's."""
    document = json.loads(byte_level_tokenizer().to_str())
    vocabulary = document["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": rule,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token.startswith("<|") else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in document["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}",
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return load_text_model(str(write_text_model(tmp_path_factory.mktemp("m"))))


@pytest.mark.parametrize("text", TEXTS)
def test_directory_and_gguf_give_the_reference_ids(model: TextModel, tmp_path: Path, text: str) -> None:
    reference = byte_level_tokenizer().encode(text, add_special_tokens=False).ids
    gguf = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", byte_level_pairs())))
    assert list(model.encode(text, add_special_tokens=False)) == reference
    assert list(gguf.encode(text, add_special_tokens=False)) == reference
    assert model.decode(reference) == gguf.decode(reference) == text


def test_special_tokens_are_one_id_and_silent(model: TextModel) -> None:
    tokens = model.encode("<|im_start|>user", add_special_tokens=False)
    assert tokens[0] == 1
    assert model.decode(tokens) == "user"
    assert model.decode(tokens, keep_special=True) == "<|im_start|>user"


def test_gguf_bos_is_added_only_when_asked(tmp_path: Path) -> None:
    pairs = {**byte_level_pairs(), "tokenizer.ggml.add_bos_token": True}
    model = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", pairs)))
    plain = model.encode("The", add_special_tokens=False)
    assert model.encode("The", add_special_tokens=True) == (1, *plain)


def test_gguf_template_sees_the_special_tokens(tmp_path: Path) -> None:
    model = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", byte_level_pairs())))
    assert model.render_chat([{"role": "user", "content": "hi"}]) == "<|im_start|>hi<|im_end|>"


def test_smollm_rule_splits_digits(tmp_path: Path) -> None:
    model = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", byte_level_pairs("smollm"))))
    assert [model.decode([token]) for token in model.encode("a 123", add_special_tokens=False)] == ["a", " ", "1", "2", "3"]


@pytest.mark.parametrize(("rule", "pieces"), [("llama-bpe", ["123", "45"]), ("qwen2", ["1", "2", "3", "4", "5"])])
def test_rules_split_numbers_their_own_way(tmp_path: Path, rule: str, pieces: list[str]) -> None:
    pairs = byte_level_pairs(rule)
    pairs["tokenizer.ggml.tokens"] += ["12", "123", "45"]
    pairs["tokenizer.ggml.token_type"] += [1, 1, 1]
    pairs["tokenizer.ggml.merges"] += ["1 2", "12 3", "4 5"]
    model = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", pairs)))
    assert [model.decode([token]) for token in model.encode("12345", add_special_tokens=False)] == pieces


def test_sentence_piece_gguf(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "hi", "▁hi", "▁t", "t"]
    pairs = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(at) for at in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *([6] * 256), *([1] * 7)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    model = load_text_model(str(write_gguf_header(tmp_path / "m.gguf", pairs)))
    ids = model.encode("hi hi é", add_special_tokens=True)
    assert [tokens[token] for token in ids] == ["<s>", "▁hi", "▁hi", "▁", "<0xC3>", "<0xA9>"]
    assert model.decode(ids) == " hi hi é"


def test_unknown_rules_families_and_sources_are_named(tmp_path: Path) -> None:
    for pairs, says in (
        (byte_level_pairs("martian"), "'martian'"),
        ({**byte_level_pairs(), "tokenizer.ggml.model": "bert"}, "'bert'"),
        ({"general.name": "x"}, "holds no tokenizer"),
    ):
        with pytest.raises(ModelLoadError, match=says):
            load_text_model(str(write_gguf_header(tmp_path / "m.gguf", pairs)))
    with pytest.raises(ModelLoadError, match="neither"):
        load_text_model(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json"):
        load_text_model(str(tmp_path / "empty"))


def test_a_tokenizer_without_bytes_is_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ModelLoadError, match="WordPiece"):
        load_text_model(str(write_text_model(tmp_path / "m", tokenizer=tokenizer)))


def test_damaged_tokenizer_file(tmp_path: Path) -> None:
    directory = write_text_model(tmp_path / "m")
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ModelLoadError, match="cannot read"):
        load_text_model(str(directory))


def test_template_file_wins_and_named_templates_have_a_default(tmp_path: Path) -> None:
    message = [{"role": "user", "content": "x"}]
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    directory = write_text_model(tmp_path / "m", template=None, config={"chat_template": named})
    assert load_text_model(str(directory)).render_chat(message) == "D"
    (directory / "chat_template.jinja").write_text("F{{ eos_token }}")
    assert load_text_model(str(directory)).render_chat(message) == "F<|im_end|>"


def test_template_variables_and_helpers(tmp_path: Path) -> None:
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% generation %}{{ flag }}{% endgeneration %}{{ strftime_now('%Y') }}"
    )
    model = load_text_model(str(write_text_model(tmp_path / "m", template=template)))
    text = model.render_chat([{"role": "user", "content": "x"}], tools=[{"a": "<ü>"}], extra={"flag": "on"})
    assert text.startswith('[{"a": "<ü>"}]on20')


def test_generation_prompt_is_optional(model: TextModel) -> None:
    message = [{"role": "user", "content": "x"}]
    without = model.render_chat(message, add_generation_prompt=False)
    assert model.render_chat(message) == without + "<|im_start|>assistant\n"


def test_template_refusals_are_the_callers_to_fix(tmp_path: Path) -> None:
    refusing = load_text_model(str(write_text_model(tmp_path / "r", template="{{ raise_exception('roles must alternate') }}")))
    with pytest.raises(InvalidRequest, match="roles must alternate") as caught:
        refusing.render_chat([{"role": "user", "content": "x"}])
    assert caught.value.param == "messages"
    adding = load_text_model(str(write_text_model(tmp_path / "a", template=CHATML)))
    with pytest.raises(InvalidRequest, match="plain text"):
        adding.render_chat([{"role": "user", "content": None}])
    none = load_text_model(str(write_text_model(tmp_path / "n", template=None)))
    with pytest.raises(UnsupportedParameter, match="/v1/completions"):
        none.render_chat([{"role": "user", "content": "x"}])


def test_templates_are_sandboxed_and_checked_at_load(tmp_path: Path) -> None:
    evil = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    model = load_text_model(str(write_text_model(tmp_path / "e", template=evil)))
    with pytest.raises(InvalidRequest):
        model.render_chat([{"role": "user", "content": "x"}])
    with pytest.raises(ModelLoadError, match="does not parse"):
        load_text_model(str(write_text_model(tmp_path / "b", template="{% if %}")))


def test_loads_and_works_where_torch_cannot_be_imported(tmp_path: Path) -> None:
    directory = write_text_model(tmp_path / "m")
    gguf = write_gguf_header(tmp_path / "m.gguf", byte_level_pairs())
    script = textwrap.dedent("""
        import sys
        class Blocked:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("torch", "triton", "transformers"):
                    raise ImportError(name)
        sys.meta_path.insert(0, Blocked())
        from prfaas.text import load_text_model
        import router.gateway.app
        for source in sys.argv[1:]:
            model = load_text_model(source)
            ids = model.encode(model.render_chat([{"role": "user", "content": "hi"}]), add_special_tokens=False)
            print(model.decode(ids))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(directory), str(gguf)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "hi" in done.stdout
