"""Turns one sample's tokens into text as they arrive. Does not know stop strings or what the text means."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from prfaas.text.vocabulary import Vocabulary


class Detokenizer:
    """Streaming detokenization of one sample.

    A character whose bytes have not all arrived is held back, so no piece ever ends in half a character and the
    concatenation of all pieces does not depend on how tokens were grouped. Bytes that can never become a character turn
    into U+FFFD.
    """

    def __init__(self, vocabulary: Vocabulary, *, keep: frozenset[int] = frozenset()) -> None:
        """`keep`: special tokens whose text is wanted, because a parser reads them; other special tokens are silent."""
        self._vocabulary = vocabulary
        self._silent = vocabulary.specials - keep if keep else vocabulary.specials
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """Text that became complete with this token; may be empty."""
        if token_id in self._silent:
            return ""
        return self._decoder.decode(self._vocabulary.piece(token_id))

    @property
    def pending(self) -> bool:
        """Whether the last tokens end inside a character that is held back."""
        return bool(self._decoder.getstate()[0])

    def finish(self) -> str:
        """What is left when the sample ends: U+FFFD if it ends inside a character, else nothing."""
        return self._decoder.decode(b"", final=True)


def decode_all(vocabulary: Vocabulary, tokens: Iterable[int], *, keep_special: bool = False) -> str:
    """Text of a whole sequence."""
    silent = frozenset() if keep_special else vocabulary.specials
    return b"".join(vocabulary.piece(t) for t in tokens if t not in silent).decode("utf-8", "replace")
