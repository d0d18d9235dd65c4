"""Finds a model's tokenizer and chat template on disk: a Hugging Face directory or a GGUF file. Fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from prfaas.errors import ModelLoadError
from prfaas.text.gguf_metadata import GgufValue, read_gguf_metadata
from prfaas.text.gguf_tokenizer import tokenizer_from_gguf
from prfaas.text.model import TextModel
from prfaas.text.template import ChatTemplate
from prfaas.text.tiktoken_tokenizer import tokenizer_from_tiktoken

_GGUF_TOKENS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def load_text_model(source: str) -> TextModel:
    """Load from a directory (tokenizer.json, or Kimi's tiktoken.model) or a `.gguf` file.

    Raises:
        ModelLoadError: nothing is there, or it is damaged, or it is of a kind that is not understood.
    """
    path = Path(source)
    if path.is_dir():
        return _from_directory(path)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(read_gguf_metadata(path))
    raise ModelLoadError(f"{source} is neither a model directory nor a .gguf file", source=source)


def _from_gguf(metadata: Mapping[str, GgufValue]) -> TextModel:
    tokens = metadata.get("tokenizer.ggml.tokens")
    template = metadata.get("tokenizer.chat_template")
    variables: dict[str, str] = {}
    for name, key in _GGUF_TOKENS.items():
        at = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(at, int) and isinstance(tokens, list) and at < len(tokens):
            variables[name] = str(tokens[at])
    return TextModel(tokenizer_from_gguf(metadata), ChatTemplate(template, variables) if isinstance(template, str) else None)


def _from_directory(path: Path) -> TextModel:
    config = _json(path / "tokenizer_config.json")
    tokenizer = _directory_tokenizer(path, config)
    source = _template_source(path, config)
    return TextModel(tokenizer, ChatTemplate(source, _special_tokens(path, config)) if source else None)


def _directory_tokenizer(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """tokenizer.json, or the ranks that Kimi's models come with instead."""
    file, ranks = path / "tokenizer.json", path / "tiktoken.model"
    if not file.is_file() and ranks.is_file() and "tokenization_kimi" in json.dumps(config.get("auto_map", "")):
        return tokenizer_from_tiktoken(ranks, config)
    if not file.is_file():
        raise ModelLoadError(
            f"{path} has no tokenizer.json; convert the model's tokenizer to that format first", source=str(path)
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:
        raise ModelLoadError(f"cannot read {file}: {error}", source=str(file)) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _template_source(path: Path, config: Mapping[str, Any]) -> str | None:
    """A file of its own wins over the configuration; of several named templates the default is taken."""
    own = path / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    found = config.get("chat_template") or _json(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    variables: dict[str, str] = {}
    for source in (_json(path / "special_tokens_map.json"), config):
        for name, value in source.items():
            text = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(text, str):
                variables[name] = text
    return variables


def _json(file: Path) -> dict[str, Any]:
    """The file's object, or an empty one if there is no file."""
    if not file.is_file():
        return {}
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"cannot read {file}: {error}", source=str(file)) from error
    return document if isinstance(document, dict) else {}
