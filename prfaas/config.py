"""Every setting of every role, in one place, with its default, unit and meaning. The only reader of the environment.

Sources in rising priority: a YAML file, `PRFAAS_*` variables (`PRFAAS_ROUTER__PORT=9000` sets `router.port`), flags
given by the command line as a nested mapping. They are merged once, validated once and frozen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prfaas.errors import ConfigError

ENV_PREFIX = "PRFAAS_"
CACHE_DIR_VARIABLE = "PRFAAS_CACHE_DIR"
WAN_EMULATOR_VARIABLE = "PRFAAS_WAN_EMULATOR"

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(gt=0)]
Port = Annotated[int, Field(ge=0, le=65535)]  # 0: let the system choose


class Settings(BaseModel):
    """Base of all settings: frozen, and a misspelt key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


SettingsT = TypeVar("SettingsT", bound=Settings)


class EngineSettings(Settings):
    """One engine: device, cache and scheduler limits."""

    kind: Literal["torch", "emulated"] = "torch"
    profile: str | None = None  # emulated only: path of the profile that gives step times
    time_scale: float = Field(default=1.0, gt=0)  # emulated only: 0.1 runs ten times faster than the profile says
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 where the processor has it
    num_threads: NonNegativeInt = 0  # 0: let torch decide
    decode_graphs: bool = True  # accelerators only: record a decode step for each batch size and replay it
    native_kernels: bool = True  # C++ kernels, compiled at the first start, where compiler and processor allow
    block_tokens: PositiveInt = 64  # tokens per cache block and alignment of prefix reuse
    cache_bytes: PositiveInt = 512 * 1024**2  # device memory for KV blocks and states
    host_cache_bytes: NonNegativeInt | None = None  # host memory for evicted prefixes; 0: none, None: by the device
    state_snapshot_blocks: PositiveInt = 16  # long prefills snapshot recurrent state every so many blocks
    state_snapshot_share: float = Field(default=0.5, gt=0, lt=1)  # share of cache_bytes that states may take
    max_running: PositiveInt = 16  # sequences in one step
    max_waiting: PositiveInt = 256  # sequences queued before QueueFull
    max_step_tokens: PositiveInt = 512  # token budget of one step (prefill chunks and decodes together)
    max_context_tokens: PositiveInt | None = None  # None: what the model's configuration says
    prefix_cache: bool = True


class TlsSettings(Settings):
    """Mutual TLS for everything that crosses machines. Files are re-read when they change."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None  # name expected in a server's certificate; None: the address that was called
    allow_plaintext: bool = False  # needed to serve or call plaintext on a non-loopback address
    reload_s: PositiveSeconds = 30.0  # how often the files are checked for change

    @property
    def enabled(self) -> bool:
        return self.cert_file is not None


class TransportSettings(Settings):
    """Moving KV caches."""

    chunk_bytes: PositiveInt = 1024**2  # target payload of one chunk
    max_lanes: PositiveInt = 16  # connections per transfer and per peer at most
    lanes: NonNegativeInt = 0  # 0: adapt to the path
    lease_s: PositiveSeconds = 30.0  # a sender keeps a transfer this long without progress
    progress_timeout_s: PositiveSeconds = 10.0  # a receiver gives up (or resumes) after this long without a byte
    connect_timeout_s: PositiveSeconds = 3.0
    max_resumes: NonNegativeInt = 3
    send_buffer_bytes: PositiveInt = 64 * 1024**2  # chunks in flight per process, all transfers together
    wire_codec: Literal["auto", "as_is", "fp8", "lossless"] = "as_is"
    egress_bytes_per_s: NonNegativeInt = 0  # 0: no cap
    tenant_egress_bytes_per_s: dict[str, PositiveInt] = Field(default_factory=dict)
    link_capacity_bytes_per_s: NonNegativeInt = 0  # 0: measured
    tls: TlsSettings = TlsSettings()


class WorkerSettings(Settings):
    """One worker process."""

    worker_id: str
    site: str
    role: Literal["prefill", "pd_prefill", "decode"]
    model: str  # resolved source: a directory, a GGUF file or a generated-model name
    served_model_name: str
    router_address: str  # host:port of the router's gRPC registry
    host: str = "127.0.0.1"  # address to bind and to advertise
    port: Port = 0
    metrics_port: Port | None = None  # None: no HTTP metrics endpoint
    heartbeat_s: PositiveSeconds = 0.5
    drain_timeout_s: PositiveSeconds = 60.0
    prefill_attempt_timeout_s: PositiveSeconds = 120.0  # one rung of the failure ladder
    engine: EngineSettings = EngineSettings()
    transport: TransportSettings = TransportSettings()


class PolicySettings(Settings):
    """Routing. Thresholds are uncached prompt tokens."""

    name: Literal["threshold", "predictive"] = "threshold"
    inline_tokens: NonNegativeInt = 32  # at most this many uncached tokens are prefilled on the decode worker
    threshold_tokens: NonNegativeInt = 19_400  # more than this goes to a remote prefill site
    adaptive: bool = True  # queues and links move the threshold, bad links fold, the late go last; off for experiments
    profiles: dict[str, Path] = Field(default_factory=dict)  # by site: what forecasts start from, until prefills are measured
    replan_s: PositiveSeconds = 60.0  # how often the planner solves again for what was measured
    convert_nodes: bool = True  # let the planner change PD nodes between prefill and decode; off: it only recommends
    convert_interval_s: PositiveSeconds = 300.0  # least time between two changes; four times that before undoing one
    convert_drain_s: PositiveSeconds = 60.0  # what a node gets to finish its requests before its other door opens
    force_route: Literal["inline", "local", "remote"] | None = None  # for tests and benchmarks
    max_candidates: PositiveInt = 3
    ttft_slo_s: PositiveSeconds = 5.0
    itl_slo_s: PositiveSeconds = 0.05
    price_per_instance_hour: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # by site
    price_per_egress_gbyte: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)  # by sending site


class TenantSettings(Settings):
    """What one tenant may use on average; 0 is no limit. Up to `burst_s` seconds' worth can be saved up."""

    tokens_per_s: float = Field(default=0.0, ge=0)  # uncached prompt tokens
    egress_bytes_per_s: float = Field(default=0.0, ge=0)  # KV bytes between sites; above it prompts stay in their site
    burst_s: PositiveSeconds = 60.0


class AdmissionSettings(Settings):
    """How much the router hands to the workers at once, and what waits at the router instead."""

    max_queued: PositiveInt = 512  # requests waiting in each of the three priority classes
    requests_per_slot: float = Field(default=2.0, gt=0)  # under way for each sequence that decode workers run at once
    max_backlog_slos: float = Field(default=2.0, gt=0)  # queued prefill of the freest worker, in multiples of ttft_slo_s
    default_tenant: TenantSettings = TenantSettings()
    tenants: dict[str, TenantSettings] = Field(default_factory=dict)


class LimitSettings(Settings):
    """What the HTTP surface accepts."""

    max_body_bytes: PositiveInt = 16 * 1024**2
    max_messages: PositiveInt = 4096
    max_stop_strings: PositiveInt = 16
    max_n: PositiveInt = 16
    max_in_flight: PositiveInt = 1024  # requests past this are answered 429
    max_schema_depth: PositiveInt = 32
    request_timeout_s: PositiveSeconds = 600.0
    sse_keepalive_s: PositiveSeconds = 10.0


class RouterSettings(Settings):
    """The router process."""

    host: str = "127.0.0.1"
    port: Port = 8000
    grpc_host: str = "127.0.0.1"
    grpc_port: Port = 0
    model: str  # resolved source of tokenizer and chat template
    served_model_name: str
    default_max_tokens: PositiveInt = 512  # for chat requests that name none (bounded by the context)
    member_timeout_s: PositiveSeconds = 3.0  # a worker without heartbeat for this long is not routed to
    drain_timeout_s: PositiveSeconds = 30.0
    policy: PolicySettings = PolicySettings()
    admission: AdmissionSettings = AdmissionSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    api_keys_file: Path | None = None
    require_auth: bool | None = None  # None: only when bound to a non-loopback address


class PoolSettings(Settings):
    """Equal workers of one role in one site."""

    role: Literal["prefill", "pd_prefill", "decode"]
    count: PositiveInt = 1
    num_cpus: float = Field(default=0.0, ge=0)  # Ray resources of one worker
    num_gpus: float = Field(default=0.0, ge=0)
    engine: EngineSettings | None = None  # None: the deployment's engine
    metrics_port: Port | None = None  # where every worker of the pool serves Prometheus, so one worker per machine


class SiteSettings(Settings):
    """One datacenter."""

    name: str
    pools: tuple[PoolSettings, ...]
    ray_address: str | None = None  # None: the local Ray instance started by `prfaas serve`
    host: str = "127.0.0.1"  # address its workers bind and advertise; "auto": each machine's towards the router


class DeploymentSettings(Settings):
    """A whole system: what `prfaas serve` starts."""

    model: str
    served_model_name: str | None = None
    pool: Literal["ray", "process"] = "ray"
    sites: tuple[SiteSettings, ...]
    router: dict[str, Any] = Field(default_factory=dict)  # fields of RouterSettings, model left out
    engine: EngineSettings = EngineSettings()
    transport: TransportSettings = TransportSettings()
    ready_timeout_s: PositiveSeconds = 180.0


def deep_merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings; `high` wins, mappings are merged key by key, None in `high` is skipped."""
    merged = dict(low)
    for key, value in high.items():
        if value is None:
            continue
        current = merged.get(key)
        if isinstance(current, Mapping) and isinstance(value, Mapping):
            merged[key] = deep_merge(current, value)
        else:
            merged[key] = value
    return merged


def environment_layer(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Turn `PRFAAS_A__B=v` into {"a": {"b": v}}; values are read as YAML. Raises ConfigError for one that is not."""
    source = os.environ if environ is None else environ
    layer: dict[str, Any] = {}
    for key, text in sorted(source.items()):
        if not key.startswith(ENV_PREFIX) or "__" not in key[len(ENV_PREFIX) :]:
            continue
        path = key[len(ENV_PREFIX) :].lower().split("__")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"the value of {key} is not YAML: {error}") from error
        for part in reversed(path):
            value = {part: value}
        layer = deep_merge(layer, value)
    return layer


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a settings file. Raises ConfigError when it is missing, unreadable or not a mapping."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"the settings file {path} must hold a mapping, not a {type(document).__name__}")
    return document


def resolve(
    kind: type[SettingsT],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> SettingsT:
    """Merge file < environment < flags and validate. Raises ConfigError naming every bad key."""
    merged: dict[str, Any] = read_yaml(file) if file is not None else {}
    merged = deep_merge(merged, environment_layer(environ))
    merged = deep_merge(merged, flags or {})
    return validate(kind, merged)


def validate(kind: type[SettingsT], document: Mapping[str, Any], *, at: str = "") -> SettingsT:
    """Validate a nested mapping as `kind`, found at the key `at` of a larger document ("" is the whole).

    Raises ConfigError naming every bad key by its full path, and what a misspelt one may have meant.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        lines = []
        for problem in error.errors():
            path = ".".join(map(str, ([at] if at else []) + list(problem["loc"])))
            what = _unknown_key(kind, problem["loc"]) if problem["type"] == "extra_forbidden" else problem["msg"]
            lines.append(f"  {path or kind.__name__}: {what}")
        raise ConfigError("these settings are wrong:\n" + "\n".join(lines)) from error


def _unknown_key(kind: type[Settings], path: tuple[int | str, ...]) -> str:
    for part in path[:-1]:
        field = kind.model_fields.get(str(part))
        kind = (field and _settings_in(field.annotation)) or kind  # a list's index or a mapping's key leads no deeper
    close = get_close_matches(str(path[-1]), kind.model_fields, n=1)
    return "there is no such setting" + (f"; did you mean {close[0]}?" if close else "")


def _settings_in(annotation: Any) -> type[Settings] | None:
    """The settings class that an annotation such as `tuple[PoolSettings, ...]` or `EngineSettings | None` holds."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next((found for found in map(_settings_in, get_args(annotation)) if found is not None), None)


def cache_dir(environ: Mapping[str, str] | None = None) -> Path:
    """Where fetched and generated models are kept: $PRFAAS_CACHE_DIR, or prfaas under $XDG_CACHE_HOME or ~/.cache."""
    source = os.environ if environ is None else environ
    explicit = source.get(CACHE_DIR_VARIABLE)
    if explicit:
        return Path(explicit)
    return Path(source.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prfaas"


def export_environment(values: Mapping[str, str]) -> None:
    """Set variables that a library reads for itself, unless the user has set them already."""
    for key, value in values.items():
        os.environ.setdefault(key, value)


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a child whose settings are in a file: without the `PRFAAS_A__B` variables merged into it."""
    source = os.environ if environ is None else environ
    return {key: value for key, value in source.items() if not (key.startswith(ENV_PREFIX) and "__" in key[len(ENV_PREFIX) :])}


def wan_emulator(environ: Mapping[str, str] | None = None) -> Path | None:
    """The script that emulates a wide-area link in two network namespaces: $PRFAAS_WAN_EMULATOR; None without one."""
    source = os.environ if environ is None else environ
    script = source.get(WAN_EMULATOR_VARIABLE)
    return Path(script) if script else None
