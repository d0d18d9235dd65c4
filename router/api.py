"""The ports inside the router: between the HTTP gateway above and the pipeline and fleet below."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

from prfaas.types import (
    Decision,
    GenerationRequest,
    LinkView,
    PrefillReport,
    Role,
    TokenOutput,
    Usage,
    WorkerInfo,
    WorkerLoad,
)


@dataclass(frozen=True, slots=True)
class Decided:
    """The request has a route; `decide_s` is what deciding took, in seconds."""

    decision: Decision
    decide_s: float


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The prompt's cache is in place and the first token is about to follow."""

    report: PrefillReport


@dataclass(frozen=True, slots=True)
class NewTokens:
    outputs: tuple[TokenOutput, ...]


@dataclass(frozen=True, slots=True)
class Done:
    usage: Usage


PipelineEvent = Decided | Prefilled | NewTokens | Done


class Pipeline(Protocol):
    """Carries one tokenized request through decision and generation."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[PipelineEvent, None]:
        """Decided, Prefilled, NewTokens..., Done. Closing the iterator (or cancelling its task) cancels the request
        everywhere. Raises UnknownModel, PromptTooLong, NoWorkerAvailable, QueueFull, DeadlineExceeded, WorkerError."""
        ...


@dataclass(frozen=True, slots=True)
class MemberView:
    """A worker as the router sees it now. `age_s` is the time since its last heartbeat; `converting` is the role that
    it is about to take."""

    info: WorkerInfo
    load: WorkerLoad
    age_s: float
    healthy: bool
    converting: Role | None = None


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """`known` false: register again. `resync` true: send a snapshot of the cache."""

    known: bool
    resync: bool


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """For health checks, the model list and the live page."""

    members: tuple[MemberView, ...]
    links: tuple[LinkView, ...]
    ready: bool  # at least one healthy decode worker
    reduced: bool  # ready, but some route that the deployment has is not available
    threshold_tokens: int


class FleetReader(Protocol):
    def status(self) -> FleetStatus: ...

    def max_context_tokens(self, model: str) -> int | None:
        """The context of a served model, or None while no healthy decode worker serves it."""
        ...
