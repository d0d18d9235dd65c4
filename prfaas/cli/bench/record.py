"""What the load generator saw of one request. Plain values; knows neither HTTP nor statistics."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds since the run began, `gaps_s` those between consecutive pieces of output.

    Token counts are the server's own where it gives them; a server without usage has one output token per piece, and a
    prompt of 0. `error` is empty for a request that ended well. `route` and `kv_bytes` are known of a prfaas router only.
    """

    due_s: float  # when the workload wanted it sent
    sent_s: float
    first_s: float | None  # the first piece of output
    end_s: float
    gaps_s: tuple[float, ...] = ()
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    route: str = ""
    kv_bytes: int = 0

    @property
    def good(self) -> bool:
        """Ended well and said something: an answer without a token is a failure that nobody reported."""
        return not self.error and self.output_tokens > 0 and self.first_s is not None

    @property
    def ttft_s(self) -> float:
        """Time to first token; meaningful only of a good request."""
        return (self.first_s if self.first_s is not None else self.end_s) - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.end_s - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first, None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return sum(self.gaps_s) / (self.output_tokens - 1)
