"""What an engine knows of one submitted request: its samples, the sequences that draw them, and where it stands.

Plain data; the core changes it. A job has one strand (a sequence and the samples it draws) until its first tokens are
drawn, and afterwards one strand for each sample that goes on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NewType

from prfaas.cache.lease import Lease
from prfaas.sched.sequence import Sequence
from prfaas.types import FinishReason, GenerationRequest, TokenLogprob

JobId = NewType("JobId", int)


class JobKind(Enum):
    """The three kinds of work of an engine."""

    GENERATE = auto()
    EXPORT = auto()
    LANDING = auto()


class JobState(Enum):
    """RESERVED (landings only) -> ACTIVE -> PINNED (exports only) -> gone. LEAVING: over, but a step, a reader or a
    writer still touches its blocks."""

    RESERVED = auto()
    ACTIVE = auto()
    PINNED = auto()
    LEAVING = auto()


@dataclass(slots=True, eq=False)
class Sample:
    """One of a request's n answers."""

    index: int
    sample_key: str
    tokens: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass(slots=True, eq=False)
class Strand:
    """A sequence that computes, and the samples that are drawn from it."""

    sequence: Sequence
    samples: list[Sample]


@dataclass(slots=True, eq=False)
class Job:
    """A request in an engine. Times are the engine clock's, in seconds.

    `pinned` is the lease of an export or of an unfinished landing. `borrowers` counts the threads that read or write
    its blocks right now; while there are any, the blocks stay.
    """

    job_id: JobId
    request: GenerationRequest
    kind: JobKind
    state: JobState
    arrival_s: float
    samples: list[Sample]
    strands: list[Strand]
    admitted_s: float | None = None
    cached_tokens: int = 0
    spoke: bool = False  # the first TokensOut was sent
    pinned: Lease | None = None
    borrowers: int = 0
    prompt_logprobs: list[tuple[TokenLogprob, ...]] = field(default_factory=list)

    @property
    def deadline_s(self) -> float | None:
        """When the request's time is up, on the engine's clock; None without one, and once it can end nothing any more."""
        limit_s = self.request.deadline_s
        over = self.state in (JobState.PINNED, JobState.LEAVING)
        return None if limit_s is None or over else self.arrival_s + limit_s

    @property
    def finished(self) -> bool:
        return all(sample.finish is not None for sample in self.samples)

    @property
    def num_drawn(self) -> int:
        return sum(len(sample.tokens) for sample in self.samples)
