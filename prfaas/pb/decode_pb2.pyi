from prfaas.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PrefillCandidate(_message.Message):
    __slots__ = ("worker_id", "site", "address", "route")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    site: str
    address: str
    route: str
    def __init__(self, worker_id: _Optional[str] = ..., site: _Optional[str] = ..., address: _Optional[str] = ..., route: _Optional[str] = ...) -> None: ...

class RouteForecast(_message.Message):
    __slots__ = ("route", "ttft_s")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    route: str
    ttft_s: float
    def __init__(self, route: _Optional[str] = ..., ttft_s: _Optional[float] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("decode_worker", "decode_address", "route", "candidates", "reasons", "uncached_tokens", "threshold_tokens", "predicted_ttft_s")
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    UNCACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREDICTED_TTFT_S_FIELD_NUMBER: _ClassVar[int]
    decode_worker: str
    decode_address: str
    route: str
    candidates: _containers.RepeatedCompositeFieldContainer[PrefillCandidate]
    reasons: _containers.RepeatedScalarFieldContainer[str]
    uncached_tokens: int
    threshold_tokens: int
    predicted_ttft_s: _containers.RepeatedCompositeFieldContainer[RouteForecast]
    def __init__(self, decode_worker: _Optional[str] = ..., decode_address: _Optional[str] = ..., route: _Optional[str] = ..., candidates: _Optional[_Iterable[_Union[PrefillCandidate, _Mapping]]] = ..., reasons: _Optional[_Iterable[str]] = ..., uncached_tokens: _Optional[int] = ..., threshold_tokens: _Optional[int] = ..., predicted_ttft_s: _Optional[_Iterable[_Union[RouteForecast, _Mapping]]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request", "decision", "call")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    request: _common_pb2.GenerationRequest
    decision: Decision
    call: int
    def __init__(self, request: _Optional[_Union[_common_pb2.GenerationRequest, _Mapping]] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., call: _Optional[int] = ...) -> None: ...

class GenerateRequests(_message.Message):
    __slots__ = ("started", "cancelled")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    started: _containers.RepeatedCompositeFieldContainer[GenerateRequest]
    cancelled: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, started: _Optional[_Iterable[_Union[GenerateRequest, _Mapping]]] = ..., cancelled: _Optional[_Iterable[int]] = ...) -> None: ...

class PrefillReport(_message.Message):
    __slots__ = ("route", "worker_id", "cached_tokens", "queue_s", "prefill_s", "wire_s", "commit_s", "kv_bytes", "attempts")
    ROUTE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    WIRE_S_FIELD_NUMBER: _ClassVar[int]
    COMMIT_S_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    route: str
    worker_id: str
    cached_tokens: int
    queue_s: float
    prefill_s: float
    wire_s: float
    commit_s: float
    kv_bytes: int
    attempts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, route: _Optional[str] = ..., worker_id: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., wire_s: _Optional[float] = ..., commit_s: _Optional[float] = ..., kv_bytes: _Optional[int] = ..., attempts: _Optional[_Iterable[str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "cached_tokens")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Tokens(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenOutput]
    def __init__(self, outputs: _Optional[_Iterable[_Union[_common_pb2.TokenOutput, _Mapping]]] = ...) -> None: ...

class GenerateEvent(_message.Message):
    __slots__ = ("prefilled", "tokens", "finished", "failed", "call")
    PREFILLED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    CALL_FIELD_NUMBER: _ClassVar[int]
    prefilled: PrefillReport
    tokens: Tokens
    finished: Usage
    failed: str
    call: int
    def __init__(self, prefilled: _Optional[_Union[PrefillReport, _Mapping]] = ..., tokens: _Optional[_Union[Tokens, _Mapping]] = ..., finished: _Optional[_Union[Usage, _Mapping]] = ..., failed: _Optional[str] = ..., call: _Optional[int] = ...) -> None: ...

class GenerateEvents(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[GenerateEvent]
    def __init__(self, events: _Optional[_Iterable[_Union[GenerateEvent, _Mapping]]] = ...) -> None: ...
