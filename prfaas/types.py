"""Values that cross package borders: ids, requests, sampling, decisions, load and token output. Plain data, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)
SiteId = NewType("SiteId", str)
TransferId = NewType("TransferId", str)
BlockHash = NewType("BlockHash", bytes)  # 16 bytes, chained over the prefix


class Role(StrEnum):
    """Which doors a worker has open.

    PREFILL belongs to a prefill-only site, PD_PREFILL is a PD node converted to prefill, DECODE lands and decodes.
    Every worker with DECODE can also prefill by itself (the inline route).
    """

    PREFILL = "prefill"
    PD_PREFILL = "pd_prefill"
    DECODE = "decode"

    @property
    def opens_prefill(self) -> bool:
        return self is not Role.DECODE


class Route(StrEnum):
    """Where a request's prompt is prefilled, seen from the decode worker."""

    INLINE = "inline"  # on the decode worker itself
    LOCAL = "local"  # on a prefill worker of the same site
    REMOTE = "remote"  # in another site, over the wide-area link


class FinishReason(StrEnum):
    STOP = "stop"  # an end-of-sequence or stop token
    LENGTH = "length"  # max_tokens or the context is used up
    CANCELLED = "cancelled"
    ERROR = "error"


class GrammarKind(StrEnum):
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    EBNF = "ebnf"


@dataclass(frozen=True, slots=True)
class Grammar:
    """Constrains output; `source` is the schema, regex or grammar text (empty for JSON_OBJECT)."""

    kind: GrammarKind
    source: str = ""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature == 0` is greedy.

    The token at output position i of sample k depends only on (seed, k, i) and the logits, never on the batch or on
    the worker, so a request prefilled elsewhere draws the same tokens. The router fills in `seed` when a client
    leaves it out. Stop *strings* are text and are applied where text is, at the router.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    n: int = 1  # samples that share one prefill
    logprobs: int | None = None  # None: off; k >= 0: the chosen token's logprob and the k best
    prompt_logprobs: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    grammar: Grammar | None = None


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One tokenized request as it travels from the router to a decode worker.

    `tokens` is the whole prompt (ids, at least one). `deadline_s` is the time left for the whole request, in
    seconds from when the message is received; None means no deadline. `cache_salt` separates prefix caches that
    must not be shared between tenants.
    """

    request_id: RequestId
    model: str
    tokens: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0  # lower runs first
    tenant: str = ""
    cache_salt: str = ""
    deadline_s: float | None = None
    trace_parent: str = ""


@dataclass(frozen=True, slots=True)
class PrefillCandidate:
    """A worker that may prefill a request, in order of preference."""

    worker_id: WorkerId
    site: SiteId
    address: str  # host:port of its gRPC server
    route: Route


@dataclass(frozen=True, slots=True)
class Decision:
    """What the router decided for one request, and why.

    `candidates` is the failure ladder, best first; it is empty for an inline route. `reasons` are short phrases for
    people. `predicted_ttft_s` maps a route to the router's forecast in seconds, where it made one.
    """

    decode_worker: WorkerId
    decode_address: str
    route: Route
    candidates: tuple[PrefillCandidate, ...]
    reasons: tuple[str, ...]
    uncached_tokens: int
    threshold_tokens: int
    predicted_ttft_s: tuple[tuple[Route, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One sampled token of sample `index` at output position `position` (0 is the first token after the prompt)."""

    index: int
    position: int
    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    # Logprobs of prompt positions 1..P-1, only on the first output of sample 0 and only when asked for:
    # entry j holds the actual token's logprob first, then the best alternatives.
    prompt_logprobs: tuple[tuple[TokenLogprob, ...], ...] | None = None


@dataclass(frozen=True, slots=True)
class PrefillReport:
    """How a prompt was prefilled, measured by those who did it. Durations in seconds, on one machine's clock each."""

    route: Route
    worker_id: WorkerId
    cached_tokens: int  # prompt tokens that came from a prefix cache anywhere
    queue_s: float  # waiting for admission at the prefilling worker
    prefill_s: float  # computing
    wire_s: float  # from the end of compute to the last byte landed (the part not hidden behind compute)
    commit_s: float  # digest check and making the sequence runnable
    kv_bytes: int  # bytes of KV that crossed a network, as sent
    attempts: tuple[str, ...] = ()  # failed rungs of the ladder before this one, as "worker:error_code"


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class GroupKind(StrEnum):
    """How a cache group grows and how it may be reused."""

    FULL = "full"  # one entry per token, any block-aligned prefix can be reused (GQA, MLA)
    SLIDING = "sliding"  # one entry per token, only the last `window_tokens` are kept
    STATE = "state"  # one fixed-size state per sequence, reusable only at exactly its length


@dataclass(frozen=True, slots=True)
class CacheGroupInfo:
    """What the router needs to know of one cache group, to promise a hit and to price a transfer.

    `entry_bytes` is over all layers of the group: of one token, or of one state.
    """

    name: str
    kind: GroupKind
    entry_bytes: int
    window_tokens: int | None = None  # SLIDING only: positions a query may see, itself included


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when it registers. `incarnation` changes with every start of the process.

    A worker that names no cache groups is never promised a prefix hit.
    """

    worker_id: WorkerId
    incarnation: str
    site: SiteId
    role: Role
    address: str
    model: str
    fingerprint_digest: str
    max_context_tokens: int
    block_tokens: int
    total_blocks: int
    max_running: int
    device: str
    cache_groups: tuple[CacheGroupInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's load at one heartbeat. Token counts are prompt tokens still to be computed."""

    running: int = 0
    waiting: int = 0
    waiting_prefill_tokens: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    active_transfers: int = 0
    prefill_tokens_per_s: float = 0.0  # recent measured speed, 0 when unknown
    decode_step_s: float = 0.0  # recent mean decode step, 0 when unknown
    draining: bool = False


class CacheTier(StrEnum):
    DEVICE = "device"
    HOST = "host"


class CacheEventKind(StrEnum):
    STORED = "stored"
    REMOVED = "removed"
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True)
class CacheEvent:
    """A change in a worker's prefix cache. `seq` rises by one per event; a gap means a resync is due.

    `group` names the cache group; for state groups a hash means "a snapshot at exactly the end of this block".
    """

    seq: int
    kind: CacheEventKind
    group: str
    tier: CacheTier
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class LinkView:
    """What a receiving site knows of the path from `src` to `dst`. Zero means unknown."""

    src: SiteId
    dst: SiteId
    capacity_bytes_per_s: float = 0.0
    goodput_bytes_per_s: float = 0.0
    queued_bytes: int = 0
    rtt_s: float = 0.0
    loss_ratio: float = 0.0
    retransmitted_bytes: int = 0
    active_transfers: int = 0
    age_s: float = 0.0
