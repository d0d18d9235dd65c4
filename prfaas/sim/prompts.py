"""From a prompt's pieces to the token ids that engines and prefix caches see. Knows no times and no workers."""

from __future__ import annotations

from collections.abc import Sequence

from prfaas.sim.workloads import Piece

DRAW, END = 1, 2  # token ids of simulated answers; END is the last token of an answer
FILL = 0
NUM_STREAMS = 2**31 - 3


def encode(prompt: Sequence[Piece], grain: int) -> tuple[int, ...]:
    """One id per grain: a piece starts with its stream's id, and the rest of it is filler.

    Block names are chained over the prefix, so the first id of a piece tells everything after it from any other text.
    A grain across a border belongs to the later piece: prompts never share more than they have in common.
    """
    ids: list[int] = []
    total = sum(piece.tokens for piece in prompt)
    whole, seen = -(-total // grain), 0
    for piece in prompt:
        begin = seen // grain
        seen += piece.tokens
        end = whole if seen == total else seen // grain
        del ids[begin:]
        ids.append(3 + piece.stream % NUM_STREAMS)
        ids.extend((FILL,) * (end - begin - 1))
    return tuple(ids[:whole])
