from prfaas.pb import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CacheGroupInfo(_message.Message):
    __slots__ = ("name", "kind", "entry_bytes", "window_tokens")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ENTRY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    entry_bytes: int
    window_tokens: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., entry_bytes: _Optional[int] = ..., window_tokens: _Optional[int] = ...) -> None: ...

class WorkerInfo(_message.Message):
    __slots__ = ("worker_id", "incarnation", "site", "role", "address", "model", "fingerprint_digest", "max_context_tokens", "block_tokens", "total_blocks", "max_running", "device", "cache_groups")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SITE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    CACHE_GROUPS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    site: str
    role: str
    address: str
    model: str
    fingerprint_digest: str
    max_context_tokens: int
    block_tokens: int
    total_blocks: int
    max_running: int
    device: str
    cache_groups: _containers.RepeatedCompositeFieldContainer[CacheGroupInfo]
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., site: _Optional[str] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., model: _Optional[str] = ..., fingerprint_digest: _Optional[str] = ..., max_context_tokens: _Optional[int] = ..., block_tokens: _Optional[int] = ..., total_blocks: _Optional[int] = ..., max_running: _Optional[int] = ..., device: _Optional[str] = ..., cache_groups: _Optional[_Iterable[_Union[CacheGroupInfo, _Mapping]]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ("heartbeat_s",)
    HEARTBEAT_S_FIELD_NUMBER: _ClassVar[int]
    heartbeat_s: float
    def __init__(self, heartbeat_s: _Optional[float] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("worker_id", "incarnation", "load", "cache_events", "links")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CACHE_EVENTS_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    load: _common_pb2.WorkerLoad
    cache_events: _containers.RepeatedCompositeFieldContainer[_common_pb2.CacheEvent]
    links: _containers.RepeatedCompositeFieldContainer[_common_pb2.LinkView]
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., load: _Optional[_Union[_common_pb2.WorkerLoad, _Mapping]] = ..., cache_events: _Optional[_Iterable[_Union[_common_pb2.CacheEvent, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[_common_pb2.LinkView, _Mapping]]] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("known", "resync_cache")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    RESYNC_CACHE_FIELD_NUMBER: _ClassVar[int]
    known: bool
    resync_cache: bool
    def __init__(self, known: _Optional[bool] = ..., resync_cache: _Optional[bool] = ...) -> None: ...

class CacheSnapshot(_message.Message):
    __slots__ = ("worker_id", "incarnation", "next_seq", "contents", "continued", "unfinished")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NEXT_SEQ_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    CONTINUED_FIELD_NUMBER: _ClassVar[int]
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    next_seq: int
    contents: _containers.RepeatedCompositeFieldContainer[_common_pb2.CacheEvent]
    continued: bool
    unfinished: bool
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., next_seq: _Optional[int] = ..., contents: _Optional[_Iterable[_Union[_common_pb2.CacheEvent, _Mapping]]] = ..., continued: _Optional[bool] = ..., unfinished: _Optional[bool] = ...) -> None: ...

class SnapshotReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DeregisterRequest(_message.Message):
    __slots__ = ("worker_id", "incarnation")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ...) -> None: ...

class DeregisterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_s",)
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    timeout_s: float
    def __init__(self, timeout_s: _Optional[float] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("unfinished",)
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    unfinished: int
    def __init__(self, unfinished: _Optional[int] = ...) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("role", "drain_timeout_s")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    role: str
    drain_timeout_s: float
    def __init__(self, role: _Optional[str] = ..., drain_timeout_s: _Optional[float] = ...) -> None: ...

class SetRoleReply(_message.Message):
    __slots__ = ("unfinished",)
    UNFINISHED_FIELD_NUMBER: _ClassVar[int]
    unfinished: int
    def __init__(self, unfinished: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("info", "load", "counters")
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    INFO_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    info: WorkerInfo
    load: _common_pb2.WorkerLoad
    counters: _containers.ScalarMap[str, float]
    def __init__(self, info: _Optional[_Union[WorkerInfo, _Mapping]] = ..., load: _Optional[_Union[_common_pb2.WorkerLoad, _Mapping]] = ..., counters: _Optional[_Mapping[str, float]] = ...) -> None: ...
