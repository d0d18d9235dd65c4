"""Rebuilds Kimi's tokenizer from its `tiktoken.model`: byte strings with ranks, and special tokens behind them.

The file has ranks where the `tokenizers` library wants the pairs that merge, so the pairs are found by replaying: a
token's pair is what is left of its bytes when every merge of a better rank has been made.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from prfaas.errors import ModelLoadError
from prfaas.text.vocabulary import byte_level_alphabet

RESERVED_TOKENS = 256  # ids behind the ranks that are special tokens, most of them without a use
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# How Kimi splits text before merging: Han by itself, words by case with their English endings, numbers in threes.
KIMI_SPLIT = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDING}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


def tokenizer_from_tiktoken(path: Path, config: Mapping[str, Any]) -> Tokenizer:
    """`config` is tokenizer_config.json, whose `added_tokens_decoder` names the special tokens.

    Raises:
        ModelLoadError: the file is damaged, or ranks are missing.
    """
    ranks = _read_ranks(path)
    alphabet = {piece: char for char, piece in byte_level_alphabet().items()}

    def spell(piece: bytes) -> str:
        return "".join(alphabet[bytes([byte])] for byte in piece)

    merges = [(spell(left), spell(right)) for left, right in (_pair(piece, ranks) for piece in ranks if len(piece) > 1)]
    tokenizer = Tokenizer(models.BPE({spell(piece): rank for piece, rank in ranks.items()}, merges))
    split = pre_tokenizers.Split(Regex(KIMI_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for text, special in _special_tokens(len(ranks), config):
        tokenizer.add_tokens([AddedToken(text, special=special, normalized=False)])
    return tokenizer


def _read_ranks(path: Path) -> dict[bytes, int]:
    """In rising order of rank; ranks count up from 0 without gaps."""
    try:
        pairs = (line.split() for line in path.read_bytes().splitlines() if line)
        ranks = {base64.b64decode(piece, validate=True): int(rank) for piece, rank in pairs}
    except (OSError, ValueError, binascii.Error) as error:
        raise ModelLoadError(f"cannot read the ranks in {path}: {error}", source=str(path)) from error
    ordered = dict(sorted(ranks.items(), key=lambda item: item[1]))
    if list(ordered.values()) != list(range(len(ordered))) or not all(bytes([byte]) in ordered for byte in range(256)):
        raise ModelLoadError(f"the ranks in {path} have gaps, or bytes are missing", source=str(path))
    return ordered


def _pair(piece: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that merge into `piece`."""
    parts = [bytes([byte]) for byte in piece]
    limit = ranks[piece]
    while len(parts) > 2:
        candidates = [(ranks.get(parts[at] + parts[at + 1], limit), at) for at in range(len(parts) - 1)]
        rank, at = min(candidates)
        if rank >= limit:
            raise ModelLoadError(f"the token of rank {limit} cannot be reached by merging", rank=limit)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _special_tokens(first_id: int, config: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Names of the reserved ids in order, with whether they are control tokens."""
    named = config.get("added_tokens_decoder")
    entries = named if isinstance(named, dict) else {}
    tokens: list[tuple[str, bool]] = []
    for token_id in range(first_id, first_id + RESERVED_TOKENS):
        match entries.get(str(token_id)):
            case {"content": str(content), **rest}:
                tokens.append((content, bool(rest.get("special", True))))
            case _:
                tokens.append((f"<|reserved_token_{token_id}|>", True))
    return tokens
