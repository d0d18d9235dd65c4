"""What a simulated worker tells about one of its jobs, and to whom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from prfaas.errors import PrfaasError


@dataclass(frozen=True, slots=True)
class Answer:
    """How a sequence was decoded. `wait_s`: between its first token and the start of its first decode step."""

    num_tokens: int
    first_s: float
    last_s: float
    wait_s: float


class Listener(Protocol):
    """What happens to one job of a worker."""

    def admitted(self, cached_tokens: int, queue_s: float) -> None: ...

    def layers(self, num_bytes: int) -> None:
        """Exports over a link: this much more can be sent."""
        ...

    def first_token(self, prefill_s: float) -> None:
        """The prompt is computed here, `prefill_s` after admission."""
        ...

    def finished(self, answer: Answer) -> None: ...

    def failed(self, error: PrfaasError) -> None: ...
