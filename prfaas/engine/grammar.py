"""Grammar-constrained decoding: compiled grammars and the parser state of every constrained sample.

Wraps llguidance. Knows token ids and their bytes; knows no torch, no logits and no sequences.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from prfaas.errors import EngineFailed, InvalidRequest
from prfaas.text.model import TextModel
from prfaas.types import Grammar, GrammarKind

MAX_COMPILED = 64

_ANY_OBJECT = '{"type": "object"}'
# Enough for a line break and a deep indentation; without a bound an unsure model can fill its whole answer with blanks.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"


class _Tokens:
    """What llguidance asks of a tokenizer: bytes of every id, and a way to split text."""

    def __init__(self, text: TextModel, vocab_size: int, eos_token_id: int) -> None:
        vocabulary = text.vocabulary
        self._text = text
        self.eos_token_id = eos_token_id
        self.bos_token_id: int | None = None
        self.tokens = [vocabulary.piece(token_id) for token_id in range(vocab_size)]
        # Ids past the tokenizer (padding of the output layer) have no text and must never be chosen.
        unused = range(len(vocabulary), vocab_size)
        self.special_token_ids = sorted({*vocabulary.specials, *unused, eos_token_id})

    def __call__(self, text: bytes | str) -> Sequence[int]:
        plain = text.decode("utf-8") if isinstance(text, bytes) else text
        return self._text.encode(plain, add_special_tokens=False)


@dataclass(slots=True)
class _Sample:
    """One sample's parser, and how many of the sample's tokens it has seen."""

    matcher: LLMatcher
    grammar: Grammar
    consumed: int


class GrammarBook:
    """Compiles grammars once and follows samples by key. Used on one thread, except `check`."""

    def __init__(self, text: TextModel, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        """Raises ValueError when the model has no end-of-sequence token, without which nothing could end."""
        eos = list(eos_token_ids)
        if not eos:
            raise ValueError("a model without an end-of-sequence token cannot follow a grammar")
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(text, vocab_size, eos[0])), n_vocab=vocab_size, eos_token=eos)
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._samples: dict[str, _Sample] = {}

    def check(self, grammar: Grammar) -> None:
        """Raise InvalidRequest, naming response_format, when a grammar cannot be followed. Callable from any thread."""
        self._build(grammar)

    def allowed(self, key: str, grammar: Grammar, output_tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens may follow `output_tokens`: bool [vocab], with at least one True. Raises InvalidRequest."""
        sample = self._follow(key, grammar, output_tokens)
        packed = np.frombuffer(sample.matcher.compute_bitmask(), dtype=np.uint8)
        self._raise_if_broken(sample.matcher)
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)

    def advance(self, key: str, token_id: int) -> bool:
        """Take a token drawn under `allowed`; True when the grammar accepts nothing further."""
        sample = self._samples[key]
        sample.matcher.consume_token(token_id)
        self._raise_if_broken(sample.matcher)
        sample.consumed += 1
        return bool(sample.matcher.is_stopped())

    def accept(self, key: str, tokens: Sequence[int]) -> None:
        """Advance a known sample by tokens drawn elsewhere.

        An unknown key needs nothing: its parser is made from the sample's whole output when it first draws here.
        """
        if key in self._samples:
            for token_id in tokens:
                self.advance(key, token_id)

    def forget(self, keys: Iterable[str]) -> None:
        """Drop samples that are over."""
        for key in keys:
            self._samples.pop(key, None)

    @property
    def num_samples(self) -> int:
        """Samples being followed, for leak audits."""
        return len(self._samples)

    def _follow(self, key: str, grammar: Grammar, output_tokens: Sequence[int]) -> _Sample:
        sample = self._samples.get(key)
        if sample is None or sample.consumed > len(output_tokens) or sample.grammar != grammar:
            sample = self._samples[key] = _Sample(self._matcher(grammar), grammar, 0)
        for token_id in output_tokens[sample.consumed :]:
            self.advance(key, token_id)
        return sample

    def _matcher(self, grammar: Grammar) -> LLMatcher:
        compiled = self._compiled.get(grammar)
        if compiled is None:
            compiled = self._compiled[grammar] = self._build(grammar)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(grammar)
        return compiled.deep_copy()

    def _build(self, grammar: Grammar) -> LLMatcher:
        try:
            matcher = LLMatcher(self._tokenizer, _compile(grammar), log_level=0)
        except ValueError as error:
            raise _invalid(grammar, str(error)) from error
        if matcher.is_error():
            raise _invalid(grammar, matcher.get_error())
        return matcher

    @staticmethod
    def _raise_if_broken(matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise EngineFailed("the grammar of a request became too complex to follow, or left its own language")


def _compile(grammar: Grammar) -> str:
    """llguidance's own form of a grammar. Raises ValueError for text that is not of its kind."""
    if grammar.kind is GrammarKind.REGEX:
        return str(LLMatcher.grammar_from_regex(grammar.source))
    if grammar.kind is GrammarKind.EBNF:
        return str(grammar_from("ebnf", grammar.source))
    schema = _ANY_OBJECT if grammar.kind is GrammarKind.JSON_OBJECT else grammar.source
    return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _WHITESPACE}))


def _invalid(grammar: Grammar, reason: str) -> InvalidRequest:
    first_line = reason.strip().splitlines()[0][:300] if reason.strip() else "it does not compile"
    return InvalidRequest(f"response_format: this {grammar.kind} grammar is not usable: {first_line}", param="response_format")
