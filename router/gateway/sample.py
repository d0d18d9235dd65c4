"""One sample's way from tokens to text: detokenize, look for stop strings, keep log-probabilities beside their text.

Pure: no I/O, no clock, no dialect.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from prfaas.text.detokenizer import Detokenizer
from prfaas.text.stops import StopMatcher
from prfaas.types import FinishReason, TokenOutput


@dataclass(frozen=True, slots=True)
class Ending:
    """How a sample ended; `stop` is the stop string that ended it, if one did, `token_id` the stop token."""

    reason: FinishReason
    stop: str | None = None
    token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """New text of sample `index`, with the tokens whose text is complete in it. `ending` comes with the last delta."""

    index: int
    text: str
    tokens: tuple[TokenOutput, ...] = ()
    ending: Ending | None = None


@dataclass(frozen=True, slots=True)
class _Held:
    """A token whose text, characters [start, stop) of the sample, is not all shown yet."""

    output: TokenOutput
    start: int
    stop: int


class Sample:
    """Feed outputs in order; a token is reported with the delta that completes its text.

    An end-of-sequence or stop token is no part of the text and is not reported, though it counts as generated. Another
    token that ends the sample well is text: the one that completes a grammar.
    """

    def __init__(
        self, index: int, detokenizer: Detokenizer, stops: Sequence[str], stop_tokens: frozenset[int] = frozenset()
    ) -> None:
        """`stops`: stop strings; `stop_tokens`: ids that are no text when they end the sample."""
        self._index = index
        self._detokenizer = detokenizer
        self._matcher = StopMatcher(stops)
        self._stop_tokens = stop_tokens
        self._held: deque[_Held] = deque()
        self._produced = 0
        self._shown = 0
        self.num_tokens = 0
        self.ended = False

    def feed(self, output: TokenOutput) -> Delta | None:
        """Take the next output; None if it shows nothing yet. After the end everything is ignored."""
        if self.ended:
            return None
        self.num_tokens += 1
        is_stop_token = output.finish_reason is FinishReason.STOP and output.token_id in self._stop_tokens
        fresh = "" if is_stop_token else self._detokenizer.feed(output.token_id)
        if output.finish_reason is not None:
            fresh += self._detokenizer.finish()
        start, self._produced = self._produced, self._produced + len(fresh)
        if not is_stop_token:
            # A token that ends inside a character is shown with that character.
            self._held.append(_Held(output, start, self._produced + self._detokenizer.pending))
        found = self._matcher.feed(fresh)
        text, ending = found.text, None
        if found.matched is not None:
            ending = Ending(FinishReason.STOP, stop=found.matched)
        elif output.finish_reason is not None:
            text += self._matcher.finish()
            ending = Ending(output.finish_reason, token_id=output.token_id if is_stop_token else None)
        self._shown += len(text)
        self.ended = ending is not None
        tokens = self._release(cut=found.matched is not None)
        return Delta(self._index, text, tokens, ending) if text or tokens or ending else None

    def _release(self, *, cut: bool) -> tuple[TokenOutput, ...]:
        """Tokens whose text is all shown; after a cut also the one that it goes through, and none behind it."""
        released: list[TokenOutput] = []
        while self._held and (self._held[0].stop <= self._shown or (cut and self._held[0].start < self._shown)):
            released.append(self._held.popleft().output)
        if cut:
            self._held.clear()
        return tuple(released)
