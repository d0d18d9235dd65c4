"""The generated models' tokenizer: byte-level BPE of 512 ids, ChatML markers, loadable by `AutoTokenizer`."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 512
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|begin_of_text|>",
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "<tool_call>",
    "</tool_call>",
    "<|reserved|>",
)
CHAT_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools: ' + (tools | tojson) + '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{%- for call in message['tool_calls'] or [] %}{{- '<tool_call>' + (call['function'] | tojson) + '</tool_call>' }}"
    "{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_CORPUS = (
    "The quick brown fox jumps over the lazy dog while seven boxing wizards judge my vow of quartz.",
    "Prefill turns a prompt into a cache; decoding reads the cache and writes one token after another.",
    "A request that is long and has no cached prefix goes to another datacenter, where processors are made for it.",
    "The cache comes back over the network in pieces, layer by layer, while the next layers are still being computed.",
    "Linear attention keeps a state of constant size, so there is much less to send than with full attention.",
    "When the link is slow or the queue is long, the request stays at home and shares the machine with the others.",
    "What is the capital of France? The capital of France is Paris. How many people live there? About two million.",
    "def answer(question: str) -> str: return model.generate(tokenizer.encode(question), max_tokens=128)",
    '{"name": "get_weather", "arguments": {"city": "Berlin", "unit": "celsius"}, "values": [0, 1, 2.5, true, null]}',
    "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.",
    "Call me Ishmael. Some years ago, having little or no money in my purse, I thought I would sail about a little.",
    "Please write a short story about a robot who learns to paint; then explain why the ending could be different.",
)


def write_tokenizer(directory: Path, max_tokens: int) -> None:
    """Write tokenizer.json and tokenizer_config.json (with the chat template). The result is always the same."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"the tokenizer has {tokenizer.get_vocab_size()} ids, not {VOCAB_SIZE}")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[BOS_ID],
        "eos_token": SPECIAL_TOKENS[EOS_ID],
        "pad_token": SPECIAL_TOKENS[PAD_ID],
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_tokens,
        "chat_template": CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
