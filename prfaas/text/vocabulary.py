"""The bytes behind every token id: what streaming text, logprobs and stop strings are made of. No tokenizer here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from prfaas.errors import ModelLoadError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`pieces[id]` is what the token adds to the output, as bytes; an id the tokenizer leaves unused adds nothing.

    A character may be spread over several tokens, so a piece need not be valid UTF-8. `specials` are the ids of control
    tokens, which are not part of what a model says.
    """

    pieces: tuple[bytes, ...]
    specials: frozenset[int]
    names: dict[str, int]  # text of added tokens, to their ids

    def __len__(self) -> int:
        return len(self.pieces)

    def piece(self, token_id: int) -> bytes:
        """Bytes of a token; empty for an id outside the tokenizer, which a padded output layer can produce."""
        return self.pieces[token_id] if 0 <= token_id < len(self.pieces) else b""


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """Read the byte table off a byte-level or a SentencePiece-like tokenizer. Raises ModelLoadError for other kinds."""
    kinds = set(_decoder_kinds(json.loads(tokenizer.to_str()).get("decoder")))
    if "ByteLevel" in kinds:
        alphabet = byte_level_alphabet()

        def to_bytes(text: str) -> bytes:
            return b"".join(alphabet.get(char) or char.encode() for char in text)

    elif kinds & {"Metaspace", "ByteFallback"}:

        def to_bytes(text: str) -> bytes:
            byte = _BYTE_TOKEN.fullmatch(text)
            return bytes([int(byte[1], 16)]) if byte else text.replace("▁", " ").encode()

    else:
        raise ModelLoadError(
            f"tokenizers that decode by {sorted(kinds) or 'nothing'} are not supported; byte-level and SentencePiece are"
        )
    added = tokenizer.get_added_tokens_decoder()
    size = max((*tokenizer.get_vocab(with_added_tokens=True).values(), 0)) + 1
    pieces = [b""] * size
    for text, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        pieces[token_id] = to_bytes(text)
    for token_id, token in added.items():
        pieces[token_id] = token.content.encode()
    specials = frozenset(token_id for token_id, token in added.items() if token.special)
    return Vocabulary(tuple(pieces), specials, {token.content: token_id for token_id, token in added.items()})


def byte_level_alphabet() -> dict[str, bytes]:
    """GPT-2's map of bytes to visible characters, inverted: printable Latin-1 stands for itself, the rest start at U+0100."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): bytes([byte]) for byte in visible}
    hidden = (byte for byte in range(0x100) if byte not in set(visible))
    table.update({chr(0x100 + at): bytes([byte]) for at, byte in enumerate(hidden)})
    return table


def _decoder_kinds(decoder: Any) -> Iterator[str]:
    if isinstance(decoder, dict):
        yield str(decoder.get("type"))
        for inner in decoder.get("decoders", ()):
            yield from _decoder_kinds(inner)
