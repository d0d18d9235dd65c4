"""Grammar-constrained decoding: compiled grammars and the parser state of every constrained sample.

Wraps llguidance. Knows token ids and their bytes; knows no torch, no logits and no sequences.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from
from numpy.typing import NDArray

from prfaas.errors import EngineFailed, InvalidRequest
from prfaas.text.model import TextModel
from prfaas.types import Grammar, GrammarKind

MAX_COMPILED = 64
MAX_SOURCE_BYTES = 128 * 1024  # compiling takes time quadratic in the number of optional properties
# Parser items that one step may need. Every step of a grammar at this bound costs about 5 ms, for all of the batch.
MAX_ITEMS = 8000
PROBED_TOKENS = 4  # a grammar that is too complex shows it on the first tokens of an answer

_ANY_OBJECT = '{"type": "object"}'
# Enough for a line break and a deep indentation; without a bound an unsure model can fill its whole answer with blanks.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
_NOT_IN_LANGUAGE = "doesn't satisfy the grammar"  # llguidance's words for a token outside it


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
    """Compiles grammars once and follows samples by key. Used on one thread, except `check`.

    What was compiled last is kept, so a grammar that passed `check` costs the computing thread a copy.
    """

    def __init__(self, text: TextModel, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        """Raises ValueError when the model has no end-of-sequence token, without which nothing could end."""
        eos = list(eos_token_ids)
        if not eos:
            raise ValueError("a model without an end-of-sequence token cannot follow a grammar")
        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(text, vocab_size, eos[0])), n_vocab=vocab_size, eos_token=eos)
        self._limits = LLParserLimits(max_items_in_row=MAX_ITEMS)
        self._lock = threading.Lock()  # over what is compiled
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._samples: dict[str, _Sample] = {}

    def check(self, grammar: Grammar) -> None:
        """Compile a grammar and try its first tokens. From any thread; takes up to a second for a huge grammar.

        Raises InvalidRequest, naming response_format and what to change, when it cannot be followed.
        """
        if self._known(grammar) is None:
            self._compile(grammar)

    def allowed(self, key: str, grammar: Grammar, output_tokens: Sequence[int]) -> NDArray[np.bool_]:
        """Which tokens may follow `output_tokens`: bool [vocab], with at least one True.

        Raises InvalidRequest when the grammar is too complex to go on, EngineFailed when the output does not obey it.
        """
        sample = self._follow(key, grammar, output_tokens)
        packed = np.frombuffer(sample.matcher.compute_bitmask(), dtype=np.uint8)
        _raise_if_broken(sample.matcher, grammar)
        return np.unpackbits(packed, count=self._vocab_size, bitorder="little").view(np.bool_)

    def advance(self, key: str, token_id: int) -> bool:
        """Take a token drawn under `allowed`; True when the grammar accepts nothing further. Raises as `allowed`."""
        sample = self._samples[key]
        sample.matcher.consume_token(token_id)
        _raise_if_broken(sample.matcher, sample.grammar)
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
        return self._known(grammar) or self._compile(grammar)

    def _known(self, grammar: Grammar) -> LLMatcher | None:
        """A parser of a grammar that was compiled lately."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is None:
                return None
            self._compiled.move_to_end(grammar)
            return compiled.deep_copy()

    def _compile(self, grammar: Grammar) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, _to_lark(grammar), log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _invalid(grammar, matcher.get_error())
        self._probe(matcher.deep_copy(), grammar)
        with self._lock:
            self._compiled[grammar] = matcher
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
            return matcher.deep_copy()

    def _probe(self, matcher: LLMatcher, grammar: Grammar) -> None:
        """Follow a grammar for a few tokens, taking the first that is allowed each time."""
        for _ in range(PROBED_TOKENS):
            packed = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            _raise_if_broken(matcher, grammar)
            allowed = np.unpackbits(packed, count=self._vocab_size, bitorder="little")
            if matcher.is_stopped() or not allowed.any():
                return
            matcher.consume_token(int(allowed.argmax()))
            _raise_if_broken(matcher, grammar)


def _to_lark(grammar: Grammar) -> str:
    """llguidance's own form of a grammar. Raises InvalidRequest for text that is too long or not of its kind."""
    size = len(grammar.source.encode())
    if size > MAX_SOURCE_BYTES:
        raise _invalid(grammar, f"it has {size} bytes, and at most {MAX_SOURCE_BYTES} are compiled; send a smaller one")
    try:
        if grammar.kind is GrammarKind.REGEX:
            return str(LLMatcher.grammar_from_regex(grammar.source))
        if grammar.kind is GrammarKind.EBNF:
            return str(grammar_from("ebnf", grammar.source))
        schema = _ANY_OBJECT if grammar.kind is GrammarKind.JSON_OBJECT else grammar.source
        return str(LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_pattern": _WHITESPACE}))
    except ValueError as error:
        raise _invalid(grammar, str(error)) from error


def _raise_if_broken(matcher: LLMatcher, grammar: Grammar) -> None:
    if not matcher.is_error():
        return
    reason = matcher.get_error()
    if _NOT_IN_LANGUAGE in reason:
        raise EngineFailed("a sample holds a token that its grammar does not allow")
    raise _invalid(
        grammar,
        "it is too complex to follow; use fewer optional properties or alternatives, or list properties as required "
        f"({_first_line(reason)})",
    )


def _invalid(grammar: Grammar, reason: str) -> InvalidRequest:
    line = _first_line(reason) or "it does not compile"
    return InvalidRequest(f"response_format: this {grammar.kind} grammar is not usable: {line}", param="response_format")


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:300]
