"""An engine's figures: recent speeds, metrics of each step, and the load and counters it reports. Decides nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from prfaas import metrics as m
from prfaas.cache.pool import PoolCounts
from prfaas.engine.core import EngineCore
from prfaas.engine.job import JobState
from prfaas.engine.totals import CoreTotals
from prfaas.metrics import MetricSet
from prfaas.sched.plan import StepPlan
from prfaas.sched.restore import HostChoice
from prfaas.types import WorkerLoad

_TRANSFERRING = (JobState.RESERVED, JobState.PINNED)  # landings, and exports until they are released
SMOOTHING = 0.2  # weight of the newest step in the recent speeds


class EngineMeters:
    """Recent speeds and the process's metrics of one engine."""

    def __init__(self, metrics: MetricSet, model_name: str) -> None:
        self._metrics = metrics
        self._model_name = model_name
        self._seen = CoreTotals()
        self._seen_choices: Counter[HostChoice] = Counter()
        self.prefill_tokens_per_s = 0.0
        self.decode_step_s = 0.0

    def step_done(self, plan: StepPlan, duration_s: float) -> None:
        """Record one executed step; `duration_s` without its copies from host memory."""
        prefill_tokens, decodes = plan.num_prefill_tokens, plan.num_decodes
        kind = "mixed" if prefill_tokens and decodes else "prefill" if prefill_tokens else "decode"
        self._metrics.observe(m.STEP_SECONDS, duration_s, kind=kind)
        if prefill_tokens and duration_s > 0:
            self.prefill_tokens_per_s = _smooth(self.prefill_tokens_per_s, prefill_tokens / duration_s)
        elif decodes:
            self.decode_step_s = _smooth(self.decode_step_s, duration_s)

    def publish(self, core: EngineCore) -> None:
        """Bring the metrics up to date with the core."""
        name, totals, seen = self._model_name, core.totals, self._seen
        for metric, amount in (
            (m.ENGINE_PROMPT_TOKENS, totals.prompt_computed - seen.prompt_computed),
            (m.ENGINE_GENERATION_TOKENS, totals.sampled - seen.sampled),
            (m.PREFIX_QUERIES, totals.prefix_queried - seen.prefix_queried),
            (m.PREFIX_HITS, totals.prefix_hit - seen.prefix_hit),
        ):
            self._metrics.inc(metric, amount, model_name=name)
        self._metrics.inc(m.WASTED_TOKENS, totals.wasted - seen.wasted)
        self._seen = replace(totals)
        for choice, count in (core.scheduler.host_choices - self._seen_choices).items():
            self._metrics.inc(m.HOST_HITS, count, origin=choice.origin, outcome=choice.outcome, reason=choice.reason)
        self._seen_choices = core.scheduler.host_choices.copy()
        self._metrics.set(m.RUNNING, core.scheduler.num_running, model_name=name)
        self._metrics.set(m.WAITING, core.scheduler.num_waiting, model_name=name)
        blocks = block_counts(core)
        for state, count in (("free", blocks.free), ("cached", blocks.cached), ("used", blocks.used)):
            self._metrics.set(m.BLOCKS, count, state=state)
        self._metrics.set(m.CACHE_USAGE, blocks.used / max(1, blocks.total), model_name=name)

    def load(self, core: EngineCore, *, draining: bool) -> WorkerLoad:
        """What a heartbeat says."""
        blocks = block_counts(core)
        return WorkerLoad(
            running=core.scheduler.num_running,
            waiting=core.scheduler.num_waiting,
            waiting_prefill_tokens=core.scheduler.waiting_tokens,
            free_blocks=blocks.free,
            cached_blocks=blocks.cached,
            active_transfers=sum(job.state in _TRANSFERRING for job in core.jobs()),
            prefill_tokens_per_s=self.prefill_tokens_per_s,
            decode_step_s=self.decode_step_s,
            draining=draining,
        )


def block_counts(core: EngineCore) -> PoolCounts:
    """FULL and SLIDING blocks of all groups together."""
    return _sum(core, state=False)


def counters(core: EngineCore) -> Mapping[str, float]:
    """The leak audit of `Engine.counters`."""
    blocks, slots = _sum(core, state=False), _sum(core, state=True)
    states = [job.state for job in core.jobs()]
    return {
        "blocks_total": blocks.total,
        "blocks_free": blocks.free,
        "blocks_cached": blocks.cached,
        "blocks_used": blocks.used,
        "slots_total": slots.total,
        "slots_free": slots.free,
        "slots_cached": slots.cached,
        "slots_used": slots.used,
        "sequences_running": core.scheduler.num_running,
        "sequences_waiting": core.scheduler.num_waiting,
        "landings": states.count(JobState.RESERVED),
        "exports_pinned": states.count(JobState.PINNED),
    }


def _sum(core: EngineCore, *, state: bool) -> PoolCounts:
    chosen = [c for name, c in core.cache.counts().items() if core.spec.cache.group(name).is_state is state]
    return PoolCounts(
        sum(c.total for c in chosen), sum(c.free for c in chosen), sum(c.cached for c in chosen), sum(c.used for c in chosen)
    )


def _smooth(old: float, new: float) -> float:
    return new if old == 0.0 else old + SMOOTHING * (new - old)
