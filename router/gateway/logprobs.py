"""Log-probabilities as the two OpenAI endpoints spell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from prfaas.text.vocabulary import Vocabulary
from prfaas.types import TokenLogprob, TokenOutput

# JSON has no minus infinity; OpenAI sends this for a token that could not have been drawn.
IMPOSSIBLE = -9999.0


def chat_logprobs(vocabulary: Vocabulary, outputs: Iterable[TokenOutput]) -> list[dict[str, Any]]:
    """`choices[].logprobs.content` of chat completions."""
    return [
        {
            **_entry(vocabulary, output.token_id, output.logprob),
            "top_logprobs": [_entry(vocabulary, top.token_id, top.logprob) for top in output.top_logprobs],
        }
        for output in outputs
    ]


def _entry(vocabulary: Vocabulary, token_id: int, logprob: float | None) -> dict[str, Any]:
    piece = vocabulary.piece(token_id)
    return {"token": piece.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(piece)}


def _finite(logprob: float | None) -> float:
    return IMPOSSIBLE if logprob is None else max(IMPOSSIBLE, logprob)


def token_name(vocabulary: Vocabulary, token_id: int) -> str:
    """The token's text; half characters as `bytes:\\xe2\\x82`, so that different tokens keep different names."""
    piece = vocabulary.piece(token_id)
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)


class CompletionLogprobs:
    """`choices[].logprobs` of completions, built up over a sample; offsets count characters from the prompt's start."""

    def __init__(self, vocabulary: Vocabulary, *, offset: int = 0) -> None:
        self._vocabulary = vocabulary
        self._offset = offset

    def of(self, outputs: Sequence[TokenOutput]) -> dict[str, Any]:
        """The four parallel lists for the next outputs of the sample."""
        entries = [(output.token_id, output.logprob, output.top_logprobs) for output in outputs]
        return self._lists(entries)

    def of_prompt(self, tokens: Sequence[int], logprobs: Sequence[Sequence[TokenLogprob]]) -> dict[str, Any]:
        """The lists for an echoed prompt; its first token has no log-probability, for nothing precedes it."""
        entries: list[tuple[int, float | None, Sequence[TokenLogprob]]] = [(tokens[0], None, ())]
        entries += [(token, found[0].logprob, found[1:]) for token, found in zip(tokens[1:], logprobs, strict=True)]
        return self._lists(entries)

    def _lists(self, entries: Sequence[tuple[int, float | None, Sequence[TokenLogprob]]]) -> dict[str, Any]:
        names, values, tops, offsets = [], [], [], []
        for token_id, logprob, top in entries:
            names.append(token_name(self._vocabulary, token_id))
            values.append(None if logprob is None else _finite(logprob))
            named = {token_name(self._vocabulary, item.token_id): _finite(item.logprob) for item in top}
            tops.append(named if logprob is not None else None)
            offsets.append(self._offset)
            self._offset += len(self._vocabulary.piece(token_id).decode("utf-8", "ignore"))
        return {"tokens": names, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two runs of completion logprobs, one after the other."""
    return {key: first[key] + second[key] for key in first}
