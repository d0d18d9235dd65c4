"""What is written down of a run while it goes on: one record for each request, one sample of the fleet now and then."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from prfaas.types import Route


class Outcome(StrEnum):
    """How a request ended. OPEN: not within the time that the run waited for it."""

    OPEN = "open"
    FINISHED = "finished"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(slots=True)
class RequestRecord:
    """One request. The stages up to the first token sum to `ttft_s`; durations in seconds.

    `door_s`: at the router. `room_s`: for room on the decode worker, failed rungs included. `queue_s`, `prefill_s`: at
    the worker that prefilled. `wire_s`: what compute did not hide, both trips included. `decode_wait_s`: from the first
    token to the first decode step. `itl_s`: mean gap between tokens, `decode_wait_s` included.
    """

    number: int
    at_s: float
    prompt_tokens: int
    answer_tokens: int
    outcome: Outcome = Outcome.OPEN
    reason: str = ""
    route: Route | None = None
    decode_worker: str = ""
    prefill_worker: str = ""
    cached_tokens: int = 0
    kv_bytes: int = 0
    door_s: float = 0.0
    room_s: float = 0.0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    wire_s: float = 0.0
    ttft_s: float = 0.0
    decode_wait_s: float = 0.0
    itl_s: float = 0.0
    end_s: float = 0.0
    forecast_s: float = 0.0
    attempts: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.outcome is Outcome.FINISHED


@dataclass(frozen=True, slots=True)
class Sample:
    """The fleet at one moment. Shares in [0, 1] are means since the sample before."""

    at_s: float
    threshold_tokens: int
    remote_busy: float
    local_busy: float
    decode_slots: float
    link_gbps: float
    link_capacity_gbps: float
    waiting: int


@dataclass(frozen=True, slots=True)
class LinkChange:
    """The short loop changed its mind about a link."""

    at_s: float
    link: str
    state: str


@dataclass(slots=True)
class Journal:
    """Everything written down in one run."""

    requests: list[RequestRecord] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    link_changes: list[LinkChange] = field(default_factory=list)
    rungs_failed: dict[str, int] = field(default_factory=dict)  # error code -> rungs

    def rung_failed(self, code: str) -> None:
        self.rungs_failed[code] = self.rungs_failed.get(code, 0) + 1
