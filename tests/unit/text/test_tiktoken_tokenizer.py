"""Kimi's tokenizer file, against merging by rank done the slow and obvious way."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from prfaas.errors import ModelLoadError
from prfaas.text import TextModel, load_text_model
from prfaas.text.tiktoken_tokenizer import KIMI_SPLIT
from prfaas.text.vocabulary import vocabulary_of
from tests.support.text_models import byte_level_tokenizer

# Ranks in the order in which a real trainer found them: bytes first, then merges.
PIECES = [*(bytes([byte]) for byte in range(256))]
PIECES += [piece for piece in vocabulary_of(byte_level_tokenizer(())).pieces if len(piece) > 1]
RANKS = {piece: rank for rank, piece in enumerate(PIECES)}
CONFIG = {
    "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    "added_tokens_decoder": {
        str(len(PIECES)): {"content": "[BOS]", "special": True},
        str(len(PIECES) + 5): {"content": "<think>", "special": False},
    },
    "bos_token": "[BOS]",
    "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}",
}


def write_model(directory: Path, pieces: list[bytes] = PIECES) -> Path:
    directory.mkdir(exist_ok=True)
    lines = [base64.b64encode(piece) + b" " + str(rank).encode() for rank, piece in enumerate(pieces)]
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG))
    return directory


def reference(text: str) -> list[int]:
    """Split, then merge the best-ranked neighbours until none is left."""
    ids: list[int] = []
    for word in regex.findall(KIMI_SPLIT, text, flags=regex.V1):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            found = [
                (RANKS[parts[at] + parts[at + 1]], at) for at in range(len(parts) - 1) if parts[at] + parts[at + 1] in RANKS
            ]
            if not found:
                break
            at = min(found)[1]
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return load_text_model(str(write_model(tmp_path_factory.mktemp("kimi"))))


@settings(max_examples=60)
@given(text=st.text(alphabet="the capitlofFranceHELLO's 12345日本\n,.{}é", max_size=60))
def test_ids_equal_merging_by_rank(model: TextModel, text: str) -> None:
    ids = list(model.encode(text, add_special_tokens=False))
    assert ids == reference(text)
    assert model.decode(ids) == text


def test_real_words_are_merged(model: TextModel) -> None:
    ids = model.encode("The capital of France", add_special_tokens=False)
    assert len(ids) < 8
    assert list(ids) == reference("The capital of France")


def test_special_tokens_have_the_ids_behind_the_ranks(model: TextModel) -> None:
    prompt = model.render_chat([{"role": "user", "content": "hi <think>"}])
    ids = model.encode(prompt, add_special_tokens=False)
    assert ids[0] == len(PIECES)
    assert ids[-1] == len(PIECES) + 5
    assert model.decode(ids) == "hi <think>"
    assert len(model.vocabulary) == len(PIECES) + 256


def test_numbers_go_in_threes_and_han_by_itself() -> None:
    assert regex.findall(KIMI_SPLIT, "a日本b 12345 don't", flags=regex.V1) == ["a", "日本", "b", " ", "123", "45", " don't"]


@pytest.mark.parametrize("pieces", [PIECES[1:], [*PIECES, b"zzzzqqqq"]])
def test_damaged_ranks_are_refused(tmp_path: Path, pieces: list[bytes]) -> None:
    with pytest.raises(ModelLoadError):
        load_text_model(str(write_model(tmp_path / "m", pieces)))


def test_garbage_is_refused(tmp_path: Path) -> None:
    directory = write_model(tmp_path / "m")
    (directory / "tiktoken.model").write_bytes(b"not base64 at all!\n")
    with pytest.raises(ModelLoadError, match="cannot read the ranks"):
        load_text_model(str(directory))
