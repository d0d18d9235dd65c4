"""What a routing decision costs: naming a long prompt, and deciding it over a large fleet with a large cache index.

200 workers in four sites, 100K-token prompts, 10 million cached blocks. A decision is everything the router does for a
request after its prompt is named and before the decode worker is called: prefix match over all workers, policy, and
the books. Prompts are a mix of new ones, ones that share a system prompt, and long conversations held by many workers.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.table import Measurement, Report, arguments, finish
from prfaas.cache.hashing import hash_blocks
from prfaas.clock import ManualClock
from prfaas.config import PolicySettings
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import (
    BlockHash,
    CacheEvent,
    CacheEventKind,
    CacheGroupInfo,
    CacheTier,
    GenerationRequest,
    GroupKind,
    LinkView,
    RequestId,
    Role,
    SamplingParams,
    SiteId,
    WorkerId,
    WorkerInfo,
    WorkerLoad,
)
from router.fleet import Fleet
from router.main import make_policy
from router.policy.decide import Policy
from router.policy.prefix_index import PromptNames, name_prompt
from router.policy.view import Tuning

BLOCK_TOKENS = 64
PD_SITES, FAR_SITES = ("pd-a", "pd-b"), ("far-a", "far-b")
DENSE = (CacheGroupInfo("attn", GroupKind.FULL, 9216),)
HYBRID = (*DENSE, CacheGroupInfo("kda", GroupKind.STATE, 40 * 1024**2))


@dataclass(frozen=True, slots=True)
class Scale:
    workers: int
    prompt_tokens: int
    index_blocks: int
    groups: tuple[CacheGroupInfo, ...]


def worker(number: int, scale: Scale) -> WorkerInfo:
    """Half of the workers decode, a quarter prefills beside them, a quarter in other sites."""
    kind = number % 4
    role = (Role.DECODE, Role.DECODE, Role.PD_PREFILL, Role.PREFILL)[kind]
    sites = FAR_SITES if role is Role.PREFILL else PD_SITES
    return WorkerInfo(
        worker_id=WorkerId(f"w{number}"),
        incarnation="1",
        site=SiteId(sites[number // 4 % 2]),
        role=role,
        address=f"10.0.{number // 250}.{number % 250}:9000",
        model="m",
        fingerprint_digest="f",
        max_context_tokens=1_000_000,
        block_tokens=BLOCK_TOKENS,
        total_blocks=100_000,
        max_running=64,
        device="bench",
        cache_groups=scale.groups,
    )


def build_fleet(scale: Scale, rng: random.Random) -> Fleet:
    """A registered, loaded fleet whose index still has to be filled."""
    fleet = Fleet(clock=ManualClock(), metrics=MetricSet(Emitter.ROUTER), member_timeout_s=3.0, tuning=Tuning(19_400))
    links = [LinkView(SiteId(a), SiteId(b), 12.5e9, 2e9, 10**8, 0.02) for a in FAR_SITES for b in PD_SITES]
    for number in range(scale.workers):
        info = worker(number, scale)
        load = WorkerLoad(rng.randrange(64), 0, rng.randrange(100_000), 50_000, 40_000, 3, 30_000.0, 0.025)
        fleet.register(info)
        fleet.put_snapshot(info.worker_id, "1", 0, ())
        fleet.heartbeat(info.worker_id, "1", load, (), links if info.role is Role.DECODE else ())
    return fleet


class Filler:
    """Sends the fleet cache events, as its workers would."""

    def __init__(self, fleet: Fleet, scale: Scale, seed: int) -> None:
        self._fleet, self._scale = fleet, scale
        self._bytes = np.random.default_rng(seed)
        self._seq = [0] * scale.workers
        self.stored = 0
        self.seconds = 0.0

    def store(self, number: int, names: Sequence[BlockHash], group: str = "attn") -> None:
        event = CacheEvent(self._seq[number], CacheEventKind.STORED, group, CacheTier.DEVICE, tuple(names))
        self._seq[number] += 1
        begin = time.thread_time()
        self._fleet.heartbeat(WorkerId(f"w{number}"), "1", WorkerLoad(free_blocks=50_000, running=8), (event,), ())
        self.seconds += time.thread_time() - begin
        self.stored += len(names)

    def fill(self, blocks: int, piece: int = 2_000) -> None:
        """Spread `blocks` distinct random names over the workers."""
        for start in range(0, blocks, piece):
            raw = self._bytes.bytes(16 * piece)
            names = [BlockHash(raw[at : at + 16]) for at in range(0, len(raw), 16)]
            self.store(start // piece % self._scale.workers, names)


def prompts(scale: Scale, filler: Filler, rng: random.Random, number: int) -> list[GenerationRequest]:
    """A third new, a third with a shared 8K-token start that half the fleet holds, a third conversations of which
    twenty workers hold various lengths."""
    made = []
    shared = [rng.randrange(150_000) for _ in range(8_192)]
    for at in range(number):
        tokens = [rng.randrange(150_000) for _ in range(scale.prompt_tokens)]
        if at % 3 == 1:
            tokens[: len(shared)] = shared
        request = GenerationRequest(RequestId(str(at)), "m", tuple(tokens), SamplingParams(max_tokens=512))
        if at % 3 == 2:
            hold(scale, filler, request, rng.sample(range(scale.workers), 20), rng)
        made.append(request)
    hold(scale, filler, made[1], list(range(0, scale.workers, 2)), rng, len(shared) // BLOCK_TOKENS)
    return made


def hold(
    scale: Scale,
    filler: Filler,
    request: GenerationRequest,
    holders: Sequence[int],
    rng: random.Random,
    most: int | None = None,
) -> None:
    """Let `holders` cache a random length (or `most` blocks) of a prompt, with a snapshot at the end where states are."""
    names = hash_blocks(request.tokens, BLOCK_TOKENS)
    for holder in holders:
        length = most or rng.randrange(1, len(names))
        filler.store(holder, names[:length])
        if len(scale.groups) > 1:
            filler.store(holder, names[length - 1 : length], "kda")


def decide_once(fleet: Fleet, policy: Policy, request: GenerationRequest, names: PromptNames) -> None:
    """What the pipeline does between naming and calling, and the end of an earlier request for each new one."""
    view = fleet.request_view(request, names)
    verdict = policy.decide(view, fleet.view(), 0.0)
    fleet.ended(fleet.dispatched(verdict, view))


def time_each(action: Callable[[int], None], rounds: int) -> list[float]:
    """Processor seconds of each call: what else runs on the machine does not count. What was built before is frozen,
    as it is in a process that has run for a while."""
    gc.collect()
    gc.freeze()
    took = []
    for at in range(rounds):
        begin = time.thread_time()
        action(at)
        took.append(time.thread_time() - begin)
    return took


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(report: Report, scale: Scale, policy_name: str, seed: int, rounds: int) -> None:
    """One scale and policy: the rows of the issue's bar."""
    rng = random.Random(seed)
    fleet = build_fleet(scale, rng)
    filler = Filler(fleet, scale, seed)
    filler.fill(scale.index_blocks)
    requests = prompts(scale, filler, rng, 30)
    named = [name_prompt(request, fleet.block_sizes()) for request in requests]
    naming = time_each(lambda at: consume(name_prompt(requests[at], fleet.block_sizes())), len(requests))
    policy = make_policy(PolicySettings.model_validate({"name": policy_name}))
    took = time_each(lambda at: decide_once(fleet, policy, requests[at % 30], named[at % 30]), rounds)
    kind = "hybrid" if len(scale.groups) > 1 else "dense"
    label = f"{policy_name}, {kind}"
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    report.add(Measurement(f"decide P50 ({label})", percentile(took, 0.5) * 1e3, "ms", lower_is_better=True))
    report.add(Measurement(f"decide P99 ({label})", percentile(took, 0.99) * 1e3, "ms", bar=1.0, lower_is_better=True))
    report.add(Measurement(f"decisions per second ({label})", rounds / sum(took), "1/s", bar=2000.0))
    report.add(Measurement(f"naming a prompt ({label})", percentile(naming, 0.5) * 1e3, "ms", lower_is_better=True))
    report.add(Measurement(f"events applied ({label})", filler.stored / filler.seconds, "blocks/s"))
    report.add(
        Measurement(f"peak memory ({label})", peak_gib, "GiB", lower_is_better=True, note=f"{filler.stored:,} blocks indexed")
    )


def consume(names: PromptNames) -> None:
    if not names:
        raise ValueError("the fleet has no block size, so nothing was named")


def main() -> int:
    parser = arguments(__doc__ or "", seed=1)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--prompt-tokens", type=int, default=100_000)
    parser.add_argument("--blocks", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3_000)
    parser.add_argument("--policy", choices=("threshold", "predictive"), action="append")
    options = parser.parse_args()
    report = Report("router: the cost of a decision", options.seed)
    for policy in options.policy or ["threshold"]:
        for groups in (DENSE, HYBRID):
            scale = Scale(options.workers, options.prompt_tokens, options.blocks, groups)
            measure(report, scale, policy, options.seed, options.rounds)
    return finish(report, options)


if __name__ == "__main__":
    sys.exit(main())
