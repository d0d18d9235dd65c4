"""What is asked: sessions of one or several turns, made from lengths, a data set or a trace. Deterministic per seed.

Prompts are made of short common words, each of which is one token to most tokenizers; `Gauge` says what a server makes of
them, so that a prompt of 512 tokens has 512 tokens there without its tokenizer here.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prfaas.errors import ConfigError

# Frequent words that byte-pair vocabularies hold with their leading space.
_FREQUENT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power "
    "hour game line end member law car city name team minute idea body back parent face level office door health person "
    "art war history party result change morning reason research girl guy moment air teacher force"
)
WORDS = tuple(_FREQUENT.split())


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user says next. `output_tokens` None leaves the length to the model; `pause_s` comes before the turn."""

    prompt: str | tuple[int, ...]
    output_tokens: int | None
    pause_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """Turns that follow one another, after `opening` messages. `at_s` is when a trace wants it to begin."""

    turns: tuple[Turn, ...]
    opening: tuple[Mapping[str, str], ...] = ()
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gauge:
    """Words to tokens on one server: a prompt of w words has overhead + w * per_word tokens there."""

    overhead_tokens: float = 0.0
    tokens_per_word: float = 1.0

    def words(self, tokens: int, *, overhead: bool = True) -> int:
        """Words that make `tokens` tokens; at least one. A text that is put into a longer prompt has no overhead."""
        return max(1, round((tokens - (self.overhead_tokens if overhead else 0.0)) / self.tokens_per_word))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens, uniformly between two bounds."""

    low: int
    high: int

    @staticmethod
    def of(text: str) -> Lengths:
        """From "512" or "256:1024". Raises ConfigError."""
        low, _, high = text.partition(":")
        try:
            found = Lengths(int(low), int(high or low))
        except ValueError as error:
            raise ConfigError(f"{text!r} is neither a number of tokens nor a range such as 256:1024") from error
        if not 1 <= found.low <= found.high:
            raise ConfigError(f"{text!r}: lengths are at least 1, and the lower bound comes first")
        return found

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Shape:
    """A made-up workload: `shared_tokens` of each prompt are the same in all; later turns add `isl` tokens each."""

    isl: Lengths
    osl: Lengths
    turns: int = 1
    pause_s: float = 0.0
    shared_tokens: int = 0


def text_of(rng: random.Random, words: int) -> str:
    """`words` random words."""
    return " ".join(rng.choices(WORDS, k=words))


def made_up(shape: Shape, gauge: Gauge, seed: str) -> Iterator[Session]:
    """Sessions without end. Raises ConfigError when the shared part leaves no room for a prompt's own."""
    if shape.shared_tokens >= shape.isl.low:
        raise ConfigError(f"--shared {shape.shared_tokens} leaves nothing of a prompt of {shape.isl.low} tokens to itself")
    shared = text_of(random.Random(f"{seed} shared"), gauge.words(shape.shared_tokens, overhead=False))
    number = 0
    while True:
        rng = random.Random(f"{seed} {number}")
        turns = []
        for at in range(shape.turns):
            words = gauge.words(shape.isl.draw(rng), overhead=at == 0)
            if at == 0 and shape.shared_tokens:
                text = f"{shared} {text_of(rng, max(1, words - len(shared.split())))}"
            else:
                text = text_of(rng, words)
            turns.append(Turn(text, shape.osl.draw(rng), shape.pause_s if at else 0.0))
        yield Session(tuple(turns))
        number += 1
