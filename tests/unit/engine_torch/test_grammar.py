"""Grammar states: what is allowed, when a sample is done, tokens drawn elsewhere, and unusable grammars."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("llguidance")

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from prfaas.engine.grammar import MAX_COMPILED, GrammarBook
from prfaas.errors import EngineFailed, InvalidRequest
from prfaas.sched.plan import Draw
from prfaas.text.model import TextModel
from prfaas.text.vocabulary import byte_level_alphabet
from prfaas.types import Grammar, GrammarKind, SamplingParams

EOS = 256
VOCAB = 262  # four ids more than the tokenizer has, as a padded output layer would

NUMBERS = Grammar(GrammarKind.REGEX, "[0-9]{2,4}")


@pytest.fixture(scope="module")
def text() -> TextModel:
    """One token per byte, and two control tokens."""
    alphabet = {char: byte[0] for char, byte in byte_level_alphabet().items()}
    tokenizer = Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<pad>", special=True)])
    return TextModel(tokenizer, None)


@pytest.fixture
def book(text: TextModel) -> GrammarBook:
    return GrammarBook(text, VOCAB, (EOS,))


def letters(allowed: np.ndarray) -> str:
    return "".join(chr(t) for t in np.flatnonzero(allowed) if t < 256)


def write(book: GrammarBook, key: str, grammar: Grammar, content: str) -> tuple[int, ...]:
    output: tuple[int, ...] = ()
    for token in content.encode():
        allowed = book.allowed(key, grammar, output)
        assert allowed[token], content[len(output) :]
        book.advance(key, token)
        output += (token,)
    return output


def test_a_regex_allows_its_characters_and_the_end_only_once_it_matches(book: GrammarBook) -> None:
    start = book.allowed("a", NUMBERS, ())
    assert start.shape == (VOCAB,)
    assert letters(start) == "0123456789"
    assert not start[EOS:].any()
    output = write(book, "a", NUMBERS, "42")
    assert book.allowed("a", NUMBERS, output)[EOS]
    assert book.advance("a", EOS)


def test_a_full_match_reports_that_nothing_can_follow(book: GrammarBook) -> None:
    output = write(book, "a", NUMBERS, "123")
    assert book.advance("a", ord("4"))
    last = book.allowed("a", NUMBERS, (*output, ord("4")))
    assert np.flatnonzero(last).tolist() == [EOS]


def test_a_lost_state_is_rebuilt_from_the_output_so_far(book: GrammarBook) -> None:
    output = write(book, "a", NUMBERS, "12")
    before = book.allowed("a", NUMBERS, output)
    book.forget(["a", "never heard of"])
    assert book.num_samples == 0
    assert np.array_equal(book.allowed("a", NUMBERS, output), before)
    # A sample that was rolled back (its last step failed) is followed from the shorter history.
    assert letters(book.allowed("a", NUMBERS, output[:1])) == "0123456789"
    assert not book.allowed("a", NUMBERS, output[:1])[EOS]


def test_tokens_drawn_elsewhere_count_once_whether_or_not_the_sample_is_known(book: GrammarBook) -> None:
    book.accept("a", [ord("1")])  # unknown: replayed from the history on the first draw
    book.allowed("b", NUMBERS, ())
    book.accept("b", [ord("1")])
    for key in ("a", "b"):
        assert not book.allowed(key, NUMBERS, (ord("1"),))[EOS]
        assert book.allowed(key, NUMBERS, (ord("1"), ord("2")))[EOS]


def test_samples_of_one_grammar_go_their_own_ways(book: GrammarBook) -> None:
    write(book, "a", NUMBERS, "12")
    assert not book.allowed("b", NUMBERS, ())[EOS]
    assert book.num_samples == 2


def test_a_schema_walks_to_a_valid_document(book: GrammarBook) -> None:
    schema = Grammar(
        GrammarKind.JSON_SCHEMA,
        json.dumps(
            {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
        ),
    )
    output = write(book, "a", schema, '{"n":7')
    assert "}" in letters(book.allowed("a", schema, output))
    assert "x" not in letters(book.allowed("a", schema, output))


def test_a_json_object_is_an_object(book: GrammarBook) -> None:
    grammar = Grammar(GrammarKind.JSON_OBJECT)
    assert "[" not in letters(book.allowed("a", grammar, ()))
    write(book, "a", grammar, '{"any": ["thing", 1, null]}')


def test_blanks_between_json_tokens_are_allowed_but_not_for_ever(book: GrammarBook) -> None:
    grammar = Grammar(GrammarKind.JSON_OBJECT)
    output = write(book, "a", grammar, "{" + "\n" + " " * 39)
    assert letters(book.allowed("a", grammar, output)) == '"}'
    assert " " in letters(book.allowed("b", grammar, tuple(b'{ "a": ')))


def test_lark_and_gbnf_are_both_understood(book: GrammarBook) -> None:
    for key, source in (("lark", 'start: "yes" | "no"'), ("gbnf", 'root ::= "yes" | "no"')):
        assert letters(book.allowed(key, Grammar(GrammarKind.EBNF, source), ())) == "ny"


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.JSON_SCHEMA, "{not json"),
        Grammar(GrammarKind.JSON_SCHEMA, '{"type": "no such type"}'),
        Grammar(GrammarKind.REGEX, "([0-9]"),
        Grammar(GrammarKind.EBNF, "start: undefined_rule"),
        Grammar(GrammarKind.EBNF, ""),
    ],
)
def test_an_unusable_grammar_is_the_callers_fault(book: GrammarBook, grammar: Grammar) -> None:
    with pytest.raises(InvalidRequest, match="response_format") as caught:
        book.check(grammar)
    assert caught.value.param == "response_format"
    assert "\n" not in caught.value.message


def test_a_token_outside_the_grammar_is_an_error(book: GrammarBook) -> None:
    book.allowed("a", NUMBERS, ())
    with pytest.raises(EngineFailed):
        book.advance("a", ord("x"))


def test_compiled_grammars_are_bounded(book: GrammarBook) -> None:
    for length in range(MAX_COMPILED + 5):
        book.allowed("a", Grammar(GrammarKind.REGEX, f"[0-9]{{{length + 1}}}"), ())
    assert len(book._compiled) == MAX_COMPILED


def test_a_model_without_an_end_cannot_follow_grammars(text: TextModel) -> None:
    with pytest.raises(ValueError, match="end-of-sequence"):
        GrammarBook(text, VOCAB, ())


def optional_properties(count: int) -> Grammar:
    properties = {f"p{at}": {"type": "string"} for at in range(count)}
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps({"type": "object", "properties": properties}))


def test_a_thousand_optional_properties_can_be_followed(book: GrammarBook) -> None:
    wide = optional_properties(1000)
    book.check(wide)
    write(book, "a", wide, '{"p7": "x", "p999": "y"}')


@pytest.mark.parametrize(
    ("grammar", "advice"),
    [(optional_properties(2500), "fewer optional properties"), (Grammar(GrammarKind.REGEX, "a" * 131_073), "131073 bytes")],
)
def test_a_grammar_too_complex_to_follow_is_refused_with_advice(book: GrammarBook, grammar: Grammar, advice: str) -> None:
    with pytest.raises(InvalidRequest, match=advice) as caught:
        book.check(grammar)
    assert caught.value.param == "response_format"


def test_a_checked_grammar_is_not_compiled_again(book: GrammarBook, monkeypatch: pytest.MonkeyPatch) -> None:
    book.check(NUMBERS)

    def compile_again(grammar: Grammar) -> None:
        raise AssertionError(f"{grammar} was compiled twice")

    monkeypatch.setattr(book, "_compile", compile_again)
    book.check(NUMBERS)
    assert letters(book.allowed("a", NUMBERS, ())) == "0123456789"


def test_a_grammar_that_breaks_in_mid_answer_spoils_no_neighbour(book: GrammarBook) -> None:
    torch = pytest.importorskip("torch")
    from prfaas.engine.torch_sampler import SampleJob, TorchSampler

    # Behind a long string no check sees the part that is too complex.
    hidden = json.loads(optional_properties(2500).source)
    late = {"type": "object", "properties": {"long": {"const": "x" * 9}, "wide": hidden}, "required": ["long", "wide"]}
    params = SamplingParams(temperature=0.0, grammar=Grammar(GrammarKind.JSON_SCHEMA, json.dumps(late)))
    book.check(params.grammar)
    output = tuple(b'{"long":"xxxxxxxxx","wide":{')
    sampler = TorchSampler(VOCAB, (EOS,), torch.device("cpu"), book)
    draws = [Draw(0, len(output), each, (9,), output, sample_key=str(at)) for at, each in enumerate((params, SamplingParams()))]
    broken, well = sampler.sample(torch.zeros(2, VOCAB), [SampleJob(row, draw) for row, draw in enumerate(draws)])
    assert isinstance(broken.error, InvalidRequest)
    assert "too complex" in broken.error.message
    assert well.error is None
