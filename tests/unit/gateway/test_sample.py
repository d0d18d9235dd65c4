"""One sample's text, tokens and ending."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prfaas.text.detokenizer import Detokenizer
from prfaas.text.vocabulary import Vocabulary
from prfaas.types import FinishReason, TokenOutput
from router.gateway.sample import Delta, Ending, Sample

BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b"<end>"), frozenset({256}), {})
END = 256


def run(raw: bytes, stops: list[str], finish: FinishReason = FinishReason.LENGTH) -> tuple[list[Delta], Sample]:
    sample = Sample(0, Detokenizer(BYTES), stops, frozenset({END}))
    deltas = []
    for position, byte in enumerate(raw):
        last = position == len(raw) - 1 and finish is FinishReason.LENGTH
        deltas.append(sample.feed(TokenOutput(0, position, byte, finish_reason=finish if last else None)))
    if finish is FinishReason.STOP:
        deltas.append(sample.feed(TokenOutput(0, len(raw), END, finish_reason=finish)))
    return [delta for delta in deltas if delta is not None], sample


def test_length_ends_with_the_last_tokens_text() -> None:
    deltas, sample = run(b"abc", [])
    assert "".join(delta.text for delta in deltas) == "abc"
    assert deltas[-1].ending is not None
    assert deltas[-1].ending.reason is FinishReason.LENGTH
    assert (sample.num_tokens, sample.ended) == (3, True)


def test_a_stop_token_counts_but_says_nothing() -> None:
    deltas, sample = run(b"abc", [], FinishReason.STOP)
    assert "".join(delta.text for delta in deltas) == "abc"
    assert [output.token_id for delta in deltas for output in delta.tokens] == list(b"abc")
    assert deltas[-1].ending is not None
    assert deltas[-1].ending.token_id == END
    assert sample.num_tokens == 4


def test_the_token_that_completes_a_grammar_is_text() -> None:
    sample = Sample(0, Detokenizer(BYTES), [], frozenset({END}))
    assert sample.feed(TokenOutput(0, 0, ord("{"))) is not None
    last = sample.feed(TokenOutput(0, 1, ord("}"), finish_reason=FinishReason.STOP))
    assert last is not None
    assert (last.text, last.ending) == ("}", Ending(FinishReason.STOP))
    assert [output.token_id for output in last.tokens] == [ord("}")]


def test_a_stop_string_cuts_text_and_tokens_together() -> None:
    deltas, sample = run(b"abcdef", ["cd"])
    assert "".join(delta.text for delta in deltas) == "ab"
    assert bytes(output.token_id for delta in deltas for output in delta.tokens) == b"ab"
    assert deltas[-1].ending is not None
    assert deltas[-1].ending.stop == "cd"
    assert sample.num_tokens == 4
    assert sample.feed(TokenOutput(0, 9, ord("x"))) is None


def test_text_held_for_a_stop_that_does_not_come_is_given_back() -> None:
    deltas, _ = run(b"abc", ["cd"])
    assert "".join(delta.text for delta in deltas) == "abc"
    deltas, _ = run(b"abc", ["cd"], FinishReason.STOP)
    assert "".join(delta.text for delta in deltas) == "abc"


def test_a_broken_last_character_becomes_a_replacement() -> None:
    deltas, _ = run("a€".encode()[:-1], [])
    assert "".join(delta.text for delta in deltas) == "a�"


@given(st.text(alphabet="ab€", max_size=20), st.lists(st.text(alphabet="ab€", min_size=1, max_size=3), max_size=2))
def test_tokens_are_reported_once_and_never_before_their_text(text: str, stops: list[str]) -> None:
    raw = text.encode()
    deltas, sample = run(raw, stops)
    if not raw:
        return
    assert sample.ended
    shown = "".join(delta.text for delta in deltas)
    assert text.startswith(shown)
    tokens = [output for delta in deltas for output in delta.tokens]
    assert [output.position for output in tokens] == list(range(len(tokens)))
    assert bytes(output.token_id for output in tokens).decode("utf-8", "ignore") == shown
    seen = b""
    for delta in deltas:
        seen += bytes(output.token_id for output in delta.tokens)
        assert shown.encode().startswith(seen) or delta.ending is not None
