"""The router's picture of all workers: who is alive, how loaded, what each caches, and how the links between sites do.

Fed by the registry (heartbeats) and by the pipeline (dispatches); read by the policy as a frozen view and by the
gateway as a status. Lives on one event loop and takes no locks. Decides nothing about requests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter

from prfaas import metrics as m
from prfaas.clock import Clock
from prfaas.log import logger
from prfaas.metrics import MetricSet
from prfaas.types import (
    CacheEvent,
    GenerationRequest,
    LinkView,
    PrefillReport,
    Role,
    SiteId,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)
from router.api import FleetStatus, HeartbeatAnswer, MemberView
from router.facts import facts
from router.ledger import Dispatch, DispatchId, Ledger
from router.links import LinkBoard
from router.policy.costs import UNKNOWN_S_PER_TOKEN, Kind
from router.policy.decide import Verdict
from router.policy.link_health import Outcomes
from router.policy.prefix_index import Family, PrefixIndex, PromptNames
from router.policy.short_loop import Arrival
from router.policy.view import FleetView, Link, RequestView, Tuning, WorkerView
from router.ranking import Ranking
from router.speeds import Speeds

_log = logger(__name__)

RECENT_REQUESTS = 4000  # that the long loop looks at
LINK_EXPIRY_S = 30.0  # link reports older than this say nothing about the link


@dataclass(slots=True)
class _Member:
    """A registered worker."""

    info: WorkerInfo
    facts: partial[WorkerView]  # what does not change while it is registered
    load: WorkerLoad
    seen_s: float
    suspect: bool = False
    converting: Role | None = None  # the role it is about to take: it gets nothing new, and registers again in that role


class Fleet:
    """Implements `FleetReader`."""

    def __init__(self, *, clock: Clock, metrics: MetricSet, member_timeout_s: float, tuning: Tuning) -> None:
        self._clock = clock
        self._metrics = metrics
        self._member_timeout_s = member_timeout_s
        self._tuning = tuning
        self._members: dict[WorkerId, _Member] = {}
        self._decode = Ranking(attrgetter("load"))
        self._prefill: dict[SiteId, Ranking] = {}
        self._index = PrefixIndex()
        self._cache_revision = 0
        self._ledger = Ledger(clock)
        self._board = LinkBoard(LINK_EXPIRY_S)
        self._recent: deque[tuple[int, int]] = deque(maxlen=RECENT_REQUESTS)
        self._outcomes: dict[Link, Outcomes] = {}
        self._arrivals: deque[Arrival] = deque(maxlen=RECENT_REQUESTS)
        self.speeds = Speeds()
        self._view: FleetView | None = None
        self._stale: dict[WorkerId, _Member] = {}  # whose view is behind; several changes between two decisions cost one
        self._counted: set[tuple[str, str, str]] = set()
        self._expected: set[tuple[str, Role]] = set()  # kinds of worker the deployment has; a silent loss does not remove one

    # ------------------------------------------------------------------ the registry's side

    def register(self, info: WorkerInfo) -> None:
        """Add a worker, or replace what is known of an earlier start of it or of its other role."""
        old = self._members.pop(info.worker_id, None)
        if old is not None:
            self._drop_view(old.info)
            self._leave(old.info)
        self._cache_revision += 1
        now_s = self._clock.now_s()
        member = _Member(info, facts(info), WorkerLoad(free_blocks=info.total_blocks), now_s)
        self._members[info.worker_id] = member
        self._index.add_worker(info.worker_id, Family(info.fingerprint_digest, info.block_tokens, info.cache_groups))
        self._expected.add((info.site, info.role))
        self._changed(member)
        _log.info("worker %s registered: %s in %s at %s", info.worker_id, info.role, info.site, info.address)

    def heartbeat(
        self,
        worker_id: WorkerId,
        incarnation: str,
        load: WorkerLoad,
        events: Sequence[CacheEvent],
        links: Sequence[LinkView],
    ) -> HeartbeatAnswer:
        """Take a worker's news. Raises InvalidRequest when an event is malformed."""
        member = self._members.get(worker_id)
        if member is None or member.info.incarnation != incarnation:
            return HeartbeatAnswer(known=False, resync=False)
        member.load, member.seen_s, member.suspect = load, self._clock.now_s(), False
        if links:
            self._board.report(worker_id, member.info.site, links, member.seen_s)
        if events:
            self._cache_revision += 1
        in_step = self._index.apply(worker_id, events)
        self._changed(member)
        return HeartbeatAnswer(known=True, resync=not in_step)

    def put_snapshot(
        self,
        worker_id: WorkerId,
        incarnation: str,
        next_seq: int,
        contents: Sequence[CacheEvent],
        *,
        continued: bool = False,
        unfinished: bool = False,
    ) -> bool:
        """Take a page of what a worker's cache holds, as in `PrefixIndex.replace`. False: the worker is unknown."""
        member = self._members.get(worker_id)
        if member is None or member.info.incarnation != incarnation:
            return False
        self._cache_revision += 1
        self._index.replace(worker_id, next_seq, contents, continued=continued, unfinished=unfinished)
        return True

    def deregister(self, worker_id: WorkerId, incarnation: str) -> None:
        """Forget a worker that leaves. A later start of it is not touched."""
        member = self._members.get(worker_id)
        if member is not None and member.info.incarnation == incarnation:
            self._forget(worker_id)
            self._leave(member.info)
            _log.info("worker %s left", worker_id)

    def expire(self, after_s: float) -> None:
        """Forget workers without a sign of life for `after_s` seconds, and refresh what depends on time alone."""
        now_s = self._clock.now_s()
        for worker_id in [w for w, member in self._members.items() if now_s - member.seen_s > after_s]:
            _log.warning("worker %s has been silent for %.0f s and is forgotten", worker_id, after_s)
            self._forget(worker_id)
        self._view = None
        self._count_workers(now_s)

    def _leave(self, info: WorkerInfo) -> None:
        """A worker said goodbye or changed its role: its kind is missed only if others of that kind remain."""
        if not any((x.info.site, x.info.role) == (info.site, info.role) for x in self._members.values()):
            self._expected.discard((info.site, info.role))

    def _forget(self, worker_id: WorkerId) -> None:
        self._drop_view(self._members.pop(worker_id).info)
        self._cache_revision += 1
        self._index.remove_worker(worker_id)
        self._board.forget(worker_id)
        self._view = None

    # ------------------------------------------------------------------ the pipeline's side

    def view(self) -> FleetView:
        """The fleet as it stands. Rebuilt only after a change."""
        if self._view is None:
            self._catch_up()
            self._view = FleetView(
                decode=self._decode.views(),
                prefill={site: ranking.views() for site, ranking in self._prefill.items()},
                links=self._board.views(self._clock.now_s()),
                tuning=self._tuning,
                member_timeout_s=self._member_timeout_s,
                models=self.speeds.models,
                promised_bytes=self._ledger.promised_bytes(),
            )
        return self._view

    def block_sizes(self) -> frozenset[int]:
        """The block sizes in tokens that caches of the fleet use; prompts are named once for each."""
        return frozenset(index.family.block_tokens for index in self._index.families())

    @property
    def cache_revision(self) -> int:
        """Rises when any worker's cache is known to have changed: while it stands, a request view stays true."""
        return self._cache_revision

    def request_view(self, request: GenerationRequest, names: PromptNames) -> RequestView:
        """The request with every worker's usable prefix. `names` come from `name_prompt` for `block_sizes()`."""
        return RequestView(
            model=request.model,
            num_tokens=len(request.tokens),
            max_tokens=request.sampling.max_tokens * request.sampling.n,
            cached_tokens=self._index.match(names),
            time_left_s=request.deadline_s,
        )

    def dispatched(self, verdict: Verdict, view: RequestView) -> DispatchId:
        """Count a decision as load until its end is known."""
        decision = verdict.decision
        decode = self._members.get(decision.decode_worker)
        prefiller = decision.candidates[0].worker_id if decision.candidates else decision.decode_worker
        block_tokens = decode.info.block_tokens if decode is not None else 1
        held = view.cached_tokens.get(decision.decode_worker, 0)
        dispatch = Dispatch(
            decode_worker=decision.decode_worker,
            prefill_worker=prefiller,
            prefill_tokens=view.num_tokens - view.cached_tokens.get(prefiller, 0),
            blocks=-(-(view.num_tokens - held) // block_tokens),
            prefill_ms=round(verdict.compute_s * 1000),
            held_tokens=held,
            link=self._link(prefiller, decision.decode_worker),
            link_bytes=verdict.kv_bytes,
        )
        dispatch_id = self._ledger.open(dispatch)
        self._arrivals.append(Arrival(self._clock.now_s(), decision.uncached_tokens, verdict.kv_bytes))
        self._touch(dispatch)
        return dispatch_id

    def prefilled(self, dispatch_id: DispatchId, report: PrefillReport, num_tokens: int) -> None:
        """The prompt is computed and landed: what it took refines the forecasts to come."""
        dispatch = self._ledger.prefilled(dispatch_id)
        self._touch(dispatch)
        member = self._members.get(report.worker_id)
        # What a report calls cached may be the receiver's prefix, which the sender computed all the same.
        unclear = report.worker_id != dispatch.decode_worker and 0 < report.cached_tokens <= dispatch.held_tokens
        if member is None or unclear:
            return
        kind, cached = Kind(member.info.site, member.info.role), report.cached_tokens
        self.speeds.learn(kind, num_tokens - cached, cached, report.prefill_s)
        self._view = None

    def ended(self, dispatch_id: DispatchId) -> None:
        """The request is over on its decode worker, however it ended."""
        self._touch(self._ledger.close(dispatch_id))

    def transfer_ended(self, prefill_worker: WorkerId, decode_worker: WorkerId, *, landed: bool, sent_bytes: int = 0) -> None:
        """A prefill over a link between sites landed or failed. Unknown workers and pairs within a site say nothing."""
        link = self._link(prefill_worker, decode_worker)
        if link is not None:
            seen = self._outcomes.get(link, Outcomes())
            self._outcomes[link] = Outcomes(seen.landed + landed, seen.failed + (not landed), seen.sent_bytes + sent_bytes)

    def _link(self, prefill_worker: WorkerId, decode_worker: WorkerId) -> Link | None:
        """The way between two workers, or None within a site and where one is unknown."""
        sites = [self._members[w].info.site for w in (prefill_worker, decode_worker) if w in self._members]
        return Link(*sites) if len(set(sites)) == 2 else None

    def finished(self, uncached_tokens: int, output_tokens: int) -> None:
        """Remember what a finished request asked for, for the long loop."""
        self._recent.append((uncached_tokens, output_tokens))

    def recent_requests(self) -> tuple[tuple[int, ...], float]:
        """Uncached prompt lengths and the mean output length of the last RECENT_REQUESTS requests, in tokens."""
        outputs = [output for _, output in self._recent]
        return tuple(uncached for uncached, _ in self._recent), sum(outputs) / max(1, len(outputs))

    def take_outcomes(self) -> dict[Link, Outcomes]:
        """Transfers that ended since the last call, by link."""
        taken, self._outcomes = self._outcomes, {}
        return taken

    def take_arrivals(self) -> tuple[Arrival, ...]:
        """Requests decided on since the last call, or the last RECENT_REQUESTS of them."""
        taken = tuple(self._arrivals)
        self._arrivals.clear()
        return taken

    def suspect(self, worker_id: WorkerId) -> None:
        """A call to this worker failed: send nothing there until it is heard of again."""
        member = self._members.get(worker_id)
        if member is not None:
            member.suspect = True
            self._changed(member)

    def converting(self, worker_id: WorkerId, role: Role | None) -> None:
        """A worker is about to take another role, or, with None, keeps the one it has."""
        member = self._members.get(worker_id)
        if member is not None:
            member.converting = role
            self._changed(member)

    def tune(self, tuning: Tuning) -> None:
        """Set the threshold and the state of the links for the decisions to come."""
        self._tuning = tuning
        self._view = None
        self._metrics.set(m.THRESHOLD_TOKENS, tuning.threshold_tokens)

    @property
    def num_dispatched(self) -> int:
        """Requests dispatched and not ended."""
        return self._ledger.num_open

    def _touch(self, dispatch: Dispatch) -> None:
        for worker_id in (dispatch.decode_worker, dispatch.prefill_worker):
            if worker_id in self._members:
                self._changed(self._members[worker_id])

    def _changed(self, member: _Member) -> None:
        self._stale[member.info.worker_id] = member
        self._view = None

    def _catch_up(self) -> None:
        for member in self._stale.values():
            self._ranking(member.info).put(self._view_of(member))
        self._stale.clear()

    def _view_of(self, member: _Member) -> WorkerView:
        """A member as policies see it: reported load, or what stands in the ledger where that is more. Prompts in the ledger
        have times of their own; only queued tokens beyond theirs are taken at an average speed."""
        load, sent = member.load, self._ledger.of(member.info.worker_id)
        unknown = max(0, load.waiting_prefill_tokens - sent.prefill_tokens)
        unknown_s = unknown * self._per_token_s(member) if unknown else 0.0
        return member.facts(
            seen_s=member.seen_s,
            running=max(load.running + load.waiting, sent.sequences),
            waiting=load.waiting,
            free_tokens=max(0, load.free_blocks + load.cached_blocks - sent.blocks) * member.info.block_tokens,
            queued_tokens=max(load.waiting_prefill_tokens, sent.prefill_tokens),
            queued_s=self._ledger.queued_s(member.info.worker_id) + unknown_s,
            prefill_tokens_per_s=load.prefill_tokens_per_s,
            decode_step_s=load.decode_step_s,
            draining=load.draining or member.converting is not None,
            suspect=member.suspect,
        )

    def _per_token_s(self, member: _Member) -> float:
        """Seconds per token of the member's queue: as fitted, as reported, or a guess."""
        model = self.speeds.models.get(Kind(member.info.site, member.info.role))
        if model is not None:
            return model.per_queued_token_s
        speed = member.load.prefill_tokens_per_s
        return 1 / speed if speed > 0 else UNKNOWN_S_PER_TOKEN

    def _ranking(self, info: WorkerInfo) -> Ranking:
        if not info.role.opens_prefill:
            return self._decode
        if info.site not in self._prefill:
            self._prefill[info.site] = Ranking(attrgetter("queued_s"))
        return self._prefill[info.site]

    def _drop_view(self, info: WorkerInfo) -> None:
        self._stale.pop(info.worker_id, None)
        ranking = self._ranking(info)
        ranking.drop(info.worker_id)
        if info.role.opens_prefill and not len(ranking):
            del self._prefill[info.site]
        self._view = None

    # ------------------------------------------------------------------ the gateway's side

    def status(self) -> FleetStatus:
        now_s = self._clock.now_s()
        members = tuple(
            MemberView(x.info, x.load, now_s - x.seen_s, self._healthy(x, now_s), x.converting) for x in self._members.values()
        )
        alive = {(x.info.site, x.info.role) for x in members if x.healthy}
        ready = any(role is Role.DECODE for _, role in alive)
        return FleetStatus(
            members=members,
            links=tuple(self._board.views(now_s).values()),
            ready=ready,
            reduced=ready and (alive != self._expected or bool(self._tuning.folded)),
            threshold_tokens=self._tuning.threshold_tokens,
        )

    def max_context_tokens(self, model: str) -> int | None:
        """The largest context among healthy decode workers of a model, or None while there is none."""
        now_s = self._clock.now_s()
        contexts = [
            x.info.max_context_tokens
            for x in self._members.values()
            if x.info.model == model and not x.info.role.opens_prefill and self._healthy(x, now_s)
        ]
        return max(contexts, default=None)

    def _healthy(self, member: _Member, now_s: float) -> bool:
        out = member.suspect or member.load.draining or member.converting is not None
        return not out and now_s - member.seen_s <= self._member_timeout_s

    def _count_workers(self, now_s: float) -> None:
        counts = dict.fromkeys(self._counted, 0)
        for x in self._members.values():
            key = (x.info.site, x.info.role.value, "healthy" if self._healthy(x, now_s) else "unhealthy")
            counts[key] = counts.get(key, 0) + 1
        for (site, role, state), number in counts.items():
            self._metrics.set(m.WORKERS, number, site=site, role=role, state=state)
        self._counted = set(counts)
