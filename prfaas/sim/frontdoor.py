"""The router in virtual time: production fleet, admission, policy and short loop, driven by events instead of a loop.

Only the order of calls is this module's own; it is that of `router.pipeline`, `router.door` and `router.tuner`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from prfaas.errors import PrfaasError, WorkerUnreachable
from prfaas.metrics import Emitter, MetricSet
from prfaas.sim.kernel import Kernel
from prfaas.sim.model import SimModel
from prfaas.sim.records import Journal, LinkChange
from prfaas.sim.scenario import Scenario
from prfaas.types import Decision, GenerationRequest, PrefillReport, Route, WorkerId
from router.fleet import Fleet
from router.ledger import DispatchId
from router.pipeline import LINK_FAULTS
from router.policy.admission import AdmissionQueue, Ticket
from router.policy.decide import Policy
from router.policy.link_health import LinkState
from router.policy.predictive import PredictivePolicy
from router.policy.prefix_index import PromptNames, name_prompt
from router.policy.room import has_room, has_slack
from router.policy.short_loop import ShortLoop
from router.policy.threshold import ThresholdPolicy
from router.policy.view import Link, RequestView, Tuning
from router.tuner import observe

MEMBER_TIMEOUT_S = 3.0
FORGET_AFTER_S = 30.0


@dataclass(slots=True, eq=False)
class Prompt:
    """A request at the router: engine tokens for naming, and its true length in the model's tokens."""

    request: GenerationRequest
    names: PromptNames
    num_tokens: int
    held: RequestView | None = None  # what workers hold of the prompt, as of the fleet's cache revision
    revision: int = -1


Entry = tuple[Decision, DispatchId] | PrfaasError  # what was decided and where it is booked, or why nothing could be


@dataclass(frozen=True, slots=True)
class Entrant:
    """A prompt at the door since `at_s`; `patient` once it has stepped back."""

    prompt: Prompt
    at_s: float
    enter: Callable[[Entry], None]
    patient: bool = False


class FrontDoor:
    """Admits, decides and keeps the books of one simulated deployment."""

    def __init__(self, scenario: Scenario, model: SimModel, kernel: Kernel, journal: Journal) -> None:
        settings = scenario.policy_settings()
        self._kernel, self._model, self._journal = kernel, model, journal
        self._admission, self._slo_s = scenario.admission, scenario.ttft_slo_s
        self.fleet = Fleet(
            clock=kernel,
            metrics=MetricSet(Emitter.ROUTER),
            member_timeout_s=max(MEMBER_TIMEOUT_S, 3 * scenario.heartbeat_s),
            tuning=Tuning(settings.threshold_tokens),
        )
        self._policy: Policy = PredictivePolicy(settings) if settings.name == "predictive" else ThresholdPolicy(settings)
        self._loop = ShortLoop(settings.threshold_tokens, settings.ttft_slo_s) if settings.adaptive else None
        self._states: dict[Link, LinkState] = {}
        self._queue = AdmissionQueue(scenario.admission.max_queued)
        self._waiting: dict[int, Entrant] = {}
        self._inside = 0
        self.threshold_tokens = settings.threshold_tokens

    def prompt(self, request: GenerationRequest, num_tokens: int) -> Prompt:
        """Name a prompt's blocks as the router does, once."""
        grains = self._model.engine_spec.cache.block_tokens
        return Prompt(request, {self._model.block_tokens: name_prompt(request, (grains,))[grains]}, num_tokens)

    def arrive(self, prompt: Prompt, enter: Callable[[Entry], None]) -> None:
        """Wait for room, then `enter`. Raises QueueFull."""
        held = max(self._view(prompt).cached_tokens.values(), default=0)
        ticket = Ticket(prompt.request.tenant, prompt.request.priority, prompt.num_tokens - held)
        number = self._queue.offer(ticket, self._kernel.now_s())
        self._waiting[number] = Entrant(prompt, self._kernel.now_s(), enter)
        self.pump()

    @property
    def num_waiting(self) -> int:
        return len(self._queue)

    def pump(self) -> None:
        """Let in whoever there is room for, one after the other, each seeing the load of those before."""
        now_s, per_slot = self._kernel.now_s(), self._admission.requests_per_slot
        while len(self._queue):
            backlog_s = self._admission.max_backlog_slos * self._slo_s
            if not has_room(self.fleet.view(), self._inside, per_slot, backlog_s, now_s):
                return
            number = self._queue.take(now_s, slack=has_slack(self.fleet.view(), self._slo_s, now_s))
            if number is None:
                return
            entrant = self._waiting[number]
            entry = self._decide(number, entrant)
            if entry is not None:
                self._inside += 1
                del self._waiting[number]
                entrant.enter(entry)

    def left(self) -> None:
        """A request that had entered is over."""
        self._inside -= 1
        self.pump()

    def _decide(self, number: int, entrant: Entrant) -> Entry | None:
        """Decide and book; None for one that is late and steps back."""
        now_s = self._kernel.now_s()
        view = replace(self._view(entrant.prompt), waited_s=now_s - entrant.at_s, patient=entrant.patient)
        try:
            verdict = self._policy.decide(view, self.fleet.view(), now_s)
            if verdict.late and self._queue.step_back(number):
                self._waiting[number] = replace(entrant, patient=True)
                return None
        except PrfaasError as error:
            return error
        return verdict.decision, self.fleet.dispatched(verdict, view)

    def prefilled(self, dispatch_id: DispatchId, report: PrefillReport, num_tokens: int, decode_worker: WorkerId) -> None:
        """Account for a landed prompt and for the rungs that failed before it."""
        self.fleet.prefilled(dispatch_id, report, num_tokens)
        for attempt in report.attempts:
            worker_id, _, code = attempt.rpartition(":")
            if code == WorkerUnreachable.code:
                self.fleet.suspect(WorkerId(worker_id))
            if code in LINK_FAULTS:
                self.fleet.transfer_ended(WorkerId(worker_id), decode_worker, landed=False)
        if report.route is Route.REMOTE:
            self.fleet.transfer_ended(report.worker_id, decode_worker, landed=True, sent_bytes=report.kv_bytes)

    def tick(self) -> None:
        """One observation of the short loop, one tuning."""
        now_s = self._kernel.now_s()
        if self._loop is not None:
            tuning = self._loop.step(observe(self.fleet, now_s), now_s)
            self.fleet.tune(tuning)
            self.threshold_tokens = tuning.threshold_tokens
            for link, state in self._loop.states().items():
                if self._states.get(link, LinkState.OPEN) is not state:
                    self._states[link] = state
                    self._journal.link_changes.append(LinkChange(now_s, f"{link.src} -> {link.dst}", state.value))
        self.pump()

    def keep_house(self) -> None:
        self.fleet.expire(FORGET_AFTER_S)

    def _view(self, prompt: Prompt) -> RequestView:
        if prompt.held is None or prompt.revision != self.fleet.cache_revision:
            view = self.fleet.request_view(prompt.request, prompt.names)
            prompt.held, prompt.revision = replace(view, num_tokens=prompt.num_tokens), self.fleet.cache_revision
        return prompt.held
