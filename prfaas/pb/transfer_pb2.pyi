from prfaas.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorLayout(_message.Message):
    __slots__ = ("name", "shape", "wire_dtype", "dtype")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    WIRE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    wire_dtype: str
    dtype: str
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., wire_dtype: _Optional[str] = ..., dtype: _Optional[str] = ...) -> None: ...

class GroupPlan(_message.Message):
    __slots__ = ("name", "kind", "layers", "tensors", "token_start", "token_stop", "state_positions", "window_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_START_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STOP_FIELD_NUMBER: _ClassVar[int]
    STATE_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    layers: _containers.RepeatedScalarFieldContainer[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorLayout]
    token_start: int
    token_stop: int
    state_positions: _containers.RepeatedScalarFieldContainer[int]
    window_tokens: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., layers: _Optional[_Iterable[int]] = ..., tensors: _Optional[_Iterable[_Union[TensorLayout, _Mapping]]] = ..., token_start: _Optional[int] = ..., token_stop: _Optional[int] = ..., state_positions: _Optional[_Iterable[int]] = ..., window_tokens: _Optional[int] = ...) -> None: ...

class PrefillOrder(_message.Message):
    __slots__ = ("request_id", "fingerprint", "request", "held_tokens", "codecs", "max_lanes", "receiver", "receiver_site", "transfer_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    HELD_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    MAX_LANES_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_FIELD_NUMBER: _ClassVar[int]
    RECEIVER_SITE_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    fingerprint: _common_pb2.Fingerprint
    request: _common_pb2.GenerationRequest
    held_tokens: int
    codecs: _containers.RepeatedScalarFieldContainer[str]
    max_lanes: int
    receiver: str
    receiver_site: str
    transfer_id: str
    def __init__(self, request_id: _Optional[str] = ..., fingerprint: _Optional[_Union[_common_pb2.Fingerprint, _Mapping]] = ..., request: _Optional[_Union[_common_pb2.GenerationRequest, _Mapping]] = ..., held_tokens: _Optional[int] = ..., codecs: _Optional[_Iterable[str]] = ..., max_lanes: _Optional[int] = ..., receiver: _Optional[str] = ..., receiver_site: _Optional[str] = ..., transfer_id: _Optional[str] = ...) -> None: ...

class Queued(_message.Message):
    __slots__ = ("position", "eta_s")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ETA_S_FIELD_NUMBER: _ClassVar[int]
    position: int
    eta_s: float
    def __init__(self, position: _Optional[int] = ..., eta_s: _Optional[float] = ...) -> None: ...

class Manifest(_message.Message):
    __slots__ = ("transfer_id", "sender", "sender_site", "num_tokens", "cached_tokens", "codec", "groups", "total_bytes", "suggested_lanes")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    SENDER_SITE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_LANES_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    sender: str
    sender_site: str
    num_tokens: int
    cached_tokens: int
    codec: str
    groups: _containers.RepeatedCompositeFieldContainer[GroupPlan]
    total_bytes: int
    suggested_lanes: int
    def __init__(self, transfer_id: _Optional[str] = ..., sender: _Optional[str] = ..., sender_site: _Optional[str] = ..., num_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., codec: _Optional[str] = ..., groups: _Optional[_Iterable[_Union[GroupPlan, _Mapping]]] = ..., total_bytes: _Optional[int] = ..., suggested_lanes: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("ready_bytes", "sent_bytes")
    READY_BYTES_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ready_bytes: int
    sent_bytes: int
    def __init__(self, ready_bytes: _Optional[int] = ..., sent_bytes: _Optional[int] = ...) -> None: ...

class FirstToken(_message.Message):
    __slots__ = ("outputs", "queue_s", "prefill_s", "since_manifest_s")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    SINCE_MANIFEST_S_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenOutput]
    queue_s: float
    prefill_s: float
    since_manifest_s: float
    def __init__(self, outputs: _Optional[_Iterable[_Union[_common_pb2.TokenOutput, _Mapping]]] = ..., queue_s: _Optional[float] = ..., prefill_s: _Optional[float] = ..., since_manifest_s: _Optional[float] = ...) -> None: ...

class PathStats(_message.Message):
    __slots__ = ("rtt_s", "sent_bytes", "retransmitted_bytes")
    RTT_S_FIELD_NUMBER: _ClassVar[int]
    SENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RETRANSMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    rtt_s: float
    sent_bytes: int
    retransmitted_bytes: int
    def __init__(self, rtt_s: _Optional[float] = ..., sent_bytes: _Optional[int] = ..., retransmitted_bytes: _Optional[int] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("num_chunks", "wire_bytes", "sha256", "path")
    NUM_CHUNKS_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    num_chunks: int
    wire_bytes: int
    sha256: bytes
    path: PathStats
    def __init__(self, num_chunks: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., path: _Optional[_Union[PathStats, _Mapping]] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("transfer_id", "lane", "received", "resume", "given_up")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    lane: int
    received: _containers.RepeatedCompositeFieldContainer[SeqRange]
    resume: bool
    given_up: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[str] = ..., lane: _Optional[int] = ..., received: _Optional[_Iterable[_Union[SeqRange, _Mapping]]] = ..., resume: _Optional[bool] = ..., given_up: _Optional[_Iterable[int]] = ...) -> None: ...

class SeqRange(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ("transfer_id", "committed", "reason")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    committed: bool
    reason: str
    def __init__(self, transfer_id: _Optional[str] = ..., committed: _Optional[bool] = ..., reason: _Optional[str] = ...) -> None: ...

class FinishReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("bytes", "message_bytes")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    message_bytes: int
    def __init__(self, bytes: _Optional[int] = ..., message_bytes: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("unix_time_s", "worker_id", "site", "path")
    UNIX_TIME_S_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    unix_time_s: float
    worker_id: str
    site: str
    path: PathStats
    def __init__(self, unix_time_s: _Optional[float] = ..., worker_id: _Optional[str] = ..., site: _Optional[str] = ..., path: _Optional[_Union[PathStats, _Mapping]] = ...) -> None: ...
