"""Small tokenizers for tests, built in memory and written as model directories. No torch, nothing fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = (
    "The capital of France is Paris. The quick brown fox jumps over the lazy dog.",
    "Hello, how are you today? I am fine, thank you very much indeed.",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_level_tokenizer(specials: tuple[str, ...] = SPECIALS) -> Tokenizer:
    """A byte-level BPE of 400 entries; specials get the first ids, so that `<|endoftext|>` is 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in specials])
    return tokenizer


def write_text_model(
    directory: Path, *, template: str | None = CHATML, tokenizer: Tokenizer | None = None, config: dict[str, Any] | None = None
) -> Path:
    """Write tokenizer.json and tokenizer_config.json; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (tokenizer or byte_level_tokenizer()).save(str(directory / "tokenizer.json"))
    document: dict[str, Any] = {"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}, **(config or {})}
    if template is not None:
        document["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(document))
    return directory
