"""Detokenizing and stop strings, token by token: nothing broken, nothing lost, whatever the cuts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prfaas.text.detokenizer import Detokenizer, decode_all
from prfaas.text.stops import StopMatcher
from prfaas.text.vocabulary import Vocabulary, byte_level_alphabet, vocabulary_of
from tests.support.text_models import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCABULARY = vocabulary_of(TOKENIZER)
BYTES = Vocabulary((*(bytes([byte]) for byte in range(256)), b"<end>", b"<tool>"), frozenset({256, 257}), {})


def test_the_alphabet_is_a_bijection_of_all_bytes() -> None:
    assert sorted(byte_level_alphabet().values()) == [bytes([byte]) for byte in range(256)]


@given(st.text())
def test_pieces_add_up_and_never_break_a_character(text: str) -> None:
    stream = Detokenizer(BYTES)
    pieces = [stream.feed(byte) for byte in text.encode()]
    assert "".join(pieces) == text
    assert stream.finish() == ""


@given(st.binary())
def test_any_bytes_stream_as_they_decode_whole(raw: bytes) -> None:
    stream = Detokenizer(BYTES)
    streamed = "".join(stream.feed(byte) for byte in raw) + stream.finish()
    assert streamed == raw.decode("utf-8", "replace") == decode_all(BYTES, raw)


def test_half_a_character_waits_and_shows_at_the_end() -> None:
    stream = Detokenizer(BYTES)
    euro = "€".encode()
    assert [stream.feed(byte) for byte in euro] == ["", "", "€"]
    assert stream.feed(euro[0]) == ""
    assert stream.finish() == "�"


def test_special_tokens_are_silent_unless_kept() -> None:
    assert Detokenizer(BYTES).feed(257) == ""
    kept = Detokenizer(BYTES, keep=frozenset({257}))
    assert (kept.feed(257), kept.feed(256)) == ("<tool>", "")


def test_ids_outside_the_vocabulary_say_nothing() -> None:
    assert Detokenizer(BYTES).feed(10_000) == ""
    assert BYTES.piece(-1) == b""


@given(st.text(alphabet="aé😀 \n", max_size=60))
def test_a_real_tokenizer_round_trips(text: str) -> None:
    stream = Detokenizer(VOCABULARY)
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert "".join(stream.feed(token) for token in ids) + stream.finish() == text


def expected(text: str, stops: list[str]) -> tuple[str, str | None]:
    """By definition: grow the text character by character until it ends with a stop string; the longest such counts."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return text[: end - len(stop)], stop
    return text, None


@given(
    st.text(alphabet="ab", max_size=40),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 6), max_size=40),
)
def test_stops_cut_exactly_however_the_text_arrives(text: str, stops: list[str], sizes: list[int]) -> None:
    matcher, shown, matched, at = StopMatcher(stops), "", None, 0
    for size in [*sizes, len(text)]:
        result = matcher.feed(text[at : at + size])
        shown, matched, at = shown + result.text, result.matched, at + size
        if matched is not None:
            break
    if matched is None:
        shown += matcher.finish()
    assert (shown, matched) == expected(text, stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    matcher = StopMatcher(["END", "\n\n"])
    assert matcher.feed("hello E").text == "hello "
    assert matcher.feed("x\n").text == "Ex"
    assert matcher.feed("y").text == "\ny"
    assert matcher.finish() == ""


def test_after_a_match_nothing_follows() -> None:
    matcher = StopMatcher(["b"])
    assert matcher.feed("abc").text == "a"
    assert matcher.feed("def").text == ""
    assert matcher.finish() == ""


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher([""])
