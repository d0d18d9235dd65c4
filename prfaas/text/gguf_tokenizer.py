"""Rebuilds a tokenizer from the metadata of a GGUF file.

Two families cover the models in circulation: "gpt2" (byte-level BPE, told apart by how text is split before merging) and
"llama" (SentencePiece BPE with byte fallback). A split rule that is not in the table is an error: guessing one would
give token ids that the model was never trained on.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from prfaas.errors import ModelLoadError
from prfaas.text.gguf_metadata import GgufValue

_CONTROL, _USER_DEFINED = 3, 4
_NUMBERS_IN_THREES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUMBERS_ONE_BY_ONE = _NUMBERS_IN_THREES.replace(r"\p{N}{1,3}", r"\p{N}")
_SPLITS = {
    "llama-bpe": _NUMBERS_IN_THREES,
    "llama3": _NUMBERS_IN_THREES,
    "llama-v3": _NUMBERS_IN_THREES,
    "dbrx": _NUMBERS_IN_THREES,
    "smaug-bpe": _NUMBERS_IN_THREES,
    "qwen2": _NUMBERS_ONE_BY_ONE,
    "stablelm2": _NUMBERS_ONE_BY_ONE,
    "hunyuan": _NUMBERS_ONE_BY_ONE,
    "megrez": _NUMBERS_ONE_BY_ONE,
}
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_GPT2 = ("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais")


def tokenizer_from_gguf(metadata: Mapping[str, GgufValue]) -> Tokenizer:
    """Raises ModelLoadError when the metadata has no tokenizer or one of a family that is not understood."""
    family = metadata.get("tokenizer.ggml.model")
    tokens = _texts(metadata, "tokenizer.ggml.tokens")
    if family == "gpt2":
        tokenizer = _byte_level(metadata, tokens)
    elif family == "llama":
        tokenizer = _sentence_piece(metadata, tokens)
    else:
        raise ModelLoadError(f"this GGUF file's tokenizer is of the family {family!r}; 'gpt2' and 'llama' are understood")
    kinds = _whole_numbers(metadata, "tokenizer.ggml.token_type")
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    bos, is_llama = metadata.get("tokenizer.ggml.bos_token_id"), family == "llama"
    if isinstance(bos, int) and metadata.get("tokenizer.ggml.add_bos_token", is_llama):
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{_escaped(tokens[bos])} $A", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def _escaped(token: str) -> str:
    return token.replace("$", "$$")


def _byte_level(metadata: Mapping[str, GgufValue], tokens: list[str]) -> Tokenizer:
    merges = [_pair(text) for text in _texts(metadata, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({token: at for at, token in enumerate(tokens)}, merges, ignore_merges=False))
    tokenizer.pre_tokenizer = _pre_tokenizer(str(metadata.get("tokenizer.ggml.pre", "")))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(rule: str) -> pre_tokenizers.PreTokenizer:
    if rule in _SPLITS:
        split = pre_tokenizers.Split(Regex(_SPLITS[rule]), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if rule in _DIGITS_THEN_GPT2:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    if rule in _GPT2:
        return plain
    known = ", ".join(sorted((*_SPLITS, *_DIGITS_THEN_GPT2, *_GPT2)))
    raise ModelLoadError(
        f"this GGUF file splits text by the rule {rule!r}, which is not understood (known: {known}); "
        "serve the model's safetensors directory instead"
    )


def _sentence_piece(metadata: Mapping[str, GgufValue], tokens: list[str]) -> Tokenizer:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise ModelLoadError("this GGUF file's tokenizer has no score for every token")
    ids = {token: at for at, token in enumerate(tokens)}
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            _merges_by_score(ids, [float(score) for score in scores if isinstance(score, int | float)]),
            unk_token=tokens[unknown] if isinstance(unknown, int) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    else:
        tokenizer.normalizer = spaces
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _merges_by_score(ids: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """SentencePiece always merges the pair whose result scores best, so that order of the results is the merge list."""
    merges: list[tuple[str, str]] = []
    for token in sorted(ids, key=lambda token: (-scores[ids[token]], ids[token])):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        merges.extend(sorted((p for p in pairs if p[0] in ids and p[1] in ids), key=lambda p: (ids[p[0]], ids[p[1]])))
    return merges


def _pair(text: str) -> tuple[str, str]:
    left, _, right = text.partition(" ")
    return left, right


def _texts(metadata: Mapping[str, GgufValue], key: str) -> list[str]:
    value = metadata.get(key)
    if not isinstance(value, list):
        raise ModelLoadError(f"this GGUF file holds no tokenizer: {key} is missing", key=key)
    return [str(item) for item in value]


def _whole_numbers(metadata: Mapping[str, GgufValue], key: str) -> list[int]:
    value = metadata.get(key)
    return [item for item in value if isinstance(item, int)] if isinstance(value, list) else []
