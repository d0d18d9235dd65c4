"""One sequence as the scheduler sees it: tokens, how many of them are computed, and what it holds. Knows no sampling."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.cache.hashing import extend_hashes
from prfaas.cache.lease import Lease
from prfaas.types import BlockHash

AGING_S = 20.0  # waiting this long is worth one step of priority, so nobody waits for ever


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what was drawn after it.

    `tokens` are the prompt's followed by the drawn ones; the last drawn token is not computed yet. `root` names the
    empty prefix. `total_tokens` is the longest it may become. `reuse_prefix` False computes the whole prompt.
    `preemptible` False: once admitted it keeps what it holds (somebody is reading its cache). `keep_tokens`: the block
    boundary whose states it keeps for whoever reads its cache.
    """

    sequence_id: int
    tokens: list[int]
    num_prompt: int
    total_tokens: int
    block_tokens: int
    root: BlockHash
    names: list[BlockHash]
    priority: int
    arrival_s: float
    reuse_prefix: bool = True
    preemptible: bool = True
    keep_tokens: int | None = None
    computed: int = 0
    cached: int = 0
    restoring: bool = False  # its hit comes from host memory, and is there after the first step
    preempted: bool = False  # it had to leave once
    lease: Lease | None = None

    @property
    def rank(self) -> tuple[float, int]:
        """Who goes first: lower priority numbers and earlier arrivals, `AGING_S` of waiting outweighing one priority."""
        return (self.arrival_s + AGING_S * self.priority, self.sequence_id)

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next draw."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        return self.computed >= self.num_prompt and len(self.tokens) - self.computed == 1

    @property
    def held(self) -> Lease:
        """The lease of an admitted sequence."""
        assert self.lease is not None, "a sequence in a step holds a lease"
        return self.lease

    def name_blocks(self) -> list[BlockHash]:
        """Names of all full blocks of `tokens`, extended as they grow."""
        done = len(self.names) * self.block_tokens
        if len(self.tokens) - done >= self.block_tokens:
            parent = self.names[-1] if self.names else self.root
            self.names.extend(extend_hashes(parent, self.tokens[done:], self.block_tokens))
        return self.names
