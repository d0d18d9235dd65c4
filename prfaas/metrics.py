"""Every metric's declaration, in one table, and the set that a process registers and updates.

Names, labels and buckets follow the field: `vllm:*` aliases let stock dashboards work on workers; our own start with
`prfaas_`. Seconds and bytes; counters end in `_total`. No label takes a request id or an unbounded value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
STAGE_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
ITL_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)
E2E_BUCKETS_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
TRANSFER_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10, 20, 60, 120)
TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576)
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 4, 10)
OVERHEAD_BUCKETS_S = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5)


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Emitter(StrEnum):
    """Which process exports a metric. A name has one emitter, so that sums never count twice."""

    ROUTER = "router"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: MetricKind
    emitter: Emitter
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, emitter: Emitter, text: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.COUNTER, emitter, text, labels)


def _gauge(name: str, emitter: Emitter, text: str, *labels: str) -> Metric:
    return Metric(name, MetricKind.GAUGE, emitter, text, labels)


def _histogram(name: str, emitter: Emitter, text: str, buckets: Iterable[float], *labels: str) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, emitter, text, labels, tuple(buckets))


R, W = Emitter.ROUTER, Emitter.WORKER

# Router: requests as clients see them.
REQUESTS = _counter("prfaas_requests_total", R, "Requests by how they ended", "outcome", "reason")
REQUESTS_ACTIVE = _gauge("prfaas_requests_active", R, "Requests between arrival and their end")
TTFT = _histogram("prfaas_ttft_seconds", R, "Arrival to first token, as the client sees it", TTFT_BUCKETS_S, "route")
TTFT_STAGE = _histogram(
    "prfaas_ttft_stage_seconds",
    R,
    "Parts of TTFT; the stages of one request sum to its TTFT",
    STAGE_BUCKETS_S,
    "stage",  # tokenize, decide, queue, prefill, wire, commit, decode_first
)
ITL = _histogram("prfaas_inter_token_latency_seconds", R, "Time between two tokens of a stream", ITL_BUCKETS_S)
E2E = _histogram("prfaas_request_duration_seconds", R, "Arrival to last token", E2E_BUCKETS_S, "route")
PROMPT_TOKENS = _counter("prfaas_prompt_tokens_total", R, "Prompt tokens of finished requests")
CACHED_TOKENS = _counter("prfaas_cached_tokens_total", R, "Prompt tokens that came from a prefix cache")
GENERATION_TOKENS = _counter("prfaas_generation_tokens_total", R, "Tokens sent to clients")
FORECAST_RATIO = _histogram(
    "prfaas_ttft_forecast_ratio", R, "Actual over predicted time to first token of the taken route", RATIO_BUCKETS, "route"
)
REGRET = _histogram(
    "prfaas_route_regret_seconds", R, "Actual TTFT less the best forecast of any route", STAGE_BUCKETS_S, "route"
)
UNCACHED_TOKENS = _histogram("prfaas_uncached_tokens", R, "Prompt tokens no cache held, per request", TOKEN_BUCKETS)
ROUTED = _counter("prfaas_routed_requests_total", R, "Tokenized requests by how the pipeline ended them", "outcome", "reason")
ROUTE_DECISIONS = _counter("prfaas_route_decisions_total", R, "Routing decisions", "route", "reason")
ROUTE_TAKEN = _counter("prfaas_route_taken_total", R, "Where prompts were in fact prefilled", "route")
FALLBACKS = _counter("prfaas_fallback_total", R, "Rungs of the failure ladder left behind", "reason")
THRESHOLD_TOKENS = _gauge("prfaas_offload_threshold_tokens", R, "Uncached length above which prefill goes remote")
ROUTER_OVERHEAD = _histogram("prfaas_router_overhead_seconds", R, "Router work per request", OVERHEAD_BUCKETS_S, "step")
PLANNED_PREFILL = _gauge("prfaas_planned_prefill_workers", R, "Prefilling nodes that the planner would run in the decode site")
CONVERSIONS = _counter("prfaas_node_conversions_total", R, "Changes of a node's role", "role", "outcome")  # done, failed
KV_BYTES = _counter("prfaas_kv_bytes_total", R, "KV cache bytes that crossed a network for finished requests", "route")
QUEUED = _gauge("prfaas_admission_queued", R, "Requests waiting at the router", "priority")  # high, normal, low
LINK_STATE = _gauge("prfaas_link_state", R, "1 for the state a link is in", "src", "dst", "state")
WORKERS = _gauge("prfaas_workers", R, "Registered workers", "site", "role", "state")

# Workers: the engine and its doors.
RUNNING = _gauge("vllm:num_requests_running", W, "Sequences in the running batch", "model_name")
WAITING = _gauge("vllm:num_requests_waiting", W, "Sequences waiting for admission", "model_name")
CACHE_USAGE = _gauge("vllm:kv_cache_usage_perc", W, "Share of cache blocks in use, 0 to 1", "model_name")
ENGINE_PROMPT_TOKENS = _counter("vllm:prompt_tokens_total", W, "Prompt tokens computed", "model_name")
ENGINE_GENERATION_TOKENS = _counter("vllm:generation_tokens_total", W, "Tokens sampled", "model_name")
PREFIX_QUERIES = _counter("vllm:prefix_cache_queries_total", W, "Prompt tokens looked up in the prefix cache", "model_name")
PREFIX_HITS = _counter("vllm:prefix_cache_hits_total", W, "Prompt tokens found in the prefix cache", "model_name")
HOST_HITS = _counter(
    "prfaas_host_tier_hits_total",
    W,
    "Prefixes that host memory held, of new prompts or preempted sequences: restored or computed, and why",
    "origin",  # prompt, preemption
    "outcome",  # restored, computed
    "reason",  # faster, unmeasured, no_room
)
BLOCKS = _gauge("prfaas_cache_blocks", W, "Cache blocks by state", "state")
STEP_SECONDS = _histogram("prfaas_engine_step_seconds", W, "Duration of engine steps", STAGE_BUCKETS_S, "kind")
TRANSFERS_ACTIVE = _gauge("prfaas_kv_transfers_active", W, "Transfers under way", "direction")
TRANSFER_SECONDS = _histogram("prfaas_kv_transfer_seconds", W, "Manifest to last byte", TRANSFER_BUCKETS_S, "direction")
TRANSFER_BYTES = _counter("prfaas_kv_wire_bytes_total", W, "Transfer payload bytes on the wire", "direction", "codec")
TRANSFER_FAILURES = _counter("prfaas_kv_transfer_failures_total", W, "Transfers that failed", "direction", "reason")
TRANSFER_RESUMES = _counter("prfaas_kv_transfer_resumes_total", W, "Lanes reattached after a break")
RUNGS_FAILED = _counter(
    "prfaas_prefill_rungs_failed_total", W, "Prefill attempts that failed here and led to the next rung", "route", "reason"
)
LEASES_ACTIVE = _gauge("prfaas_kv_leases_active", W, "Finished prefills still held for a receiver")
WASTED_TOKENS = _counter("prfaas_wasted_prefill_tokens_total", W, "Prompt tokens computed for requests nobody received")

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


class MetricSet:
    """The metrics of one process, in a registry of its own. Updating a metric of another emitter is a KeyError."""

    def __init__(self, emitter: Emitter, metrics: Iterable[Metric] = ALL) -> None:
        self.registry = CollectorRegistry()
        self._collectors: dict[str, Counter | Gauge | Histogram] = {}
        self._labelled: dict[tuple[str, tuple[tuple[str, str], ...]], Counter | Gauge | Histogram] = {}
        for metric in metrics:
            if metric.emitter is emitter:
                self._collectors[metric.name] = self._make(metric)

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind is MetricKind.COUNTER:
            return Counter(metric.name, metric.help, metric.labels, registry=self.registry)
        if metric.kind is MetricKind.GAUGE:
            return Gauge(metric.name, metric.help, metric.labels, registry=self.registry)
        return Histogram(metric.name, metric.help, metric.labels, registry=self.registry, buckets=metric.buckets)

    def inc(self, metric: Metric, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter or gauge."""
        collector = self._series(metric, labels)
        if isinstance(collector, Histogram):
            raise TypeError(f"{metric.name} is a histogram; use observe")
        collector.inc(amount)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        collector = self._series(metric, labels)
        if not isinstance(collector, Gauge):
            raise TypeError(f"{metric.name} is not a gauge")
        collector.set(value)

    def observe(self, metric: Metric, value: float, **labels: str) -> None:
        """Record into a histogram."""
        collector = self._series(metric, labels)
        if not isinstance(collector, Histogram):
            raise TypeError(f"{metric.name} is not a histogram")
        collector.observe(value)

    def _series(self, metric: Metric, labels: Mapping[str, str]) -> Counter | Gauge | Histogram:
        """The collector of these labels, kept: looking one up by its labels costs more than updating it."""
        if not labels:
            return self._collectors[metric.name]
        key = (metric.name, tuple(labels.items()))
        found = self._labelled.get(key)
        if found is None:
            found = self._labelled[key] = self._collectors[metric.name].labels(**labels)
        return found

    def render(self) -> bytes:
        """The Prometheus text exposition."""
        return generate_latest(self.registry)
