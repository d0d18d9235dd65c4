"""The error tree: every way a request, a transfer or a process can fail, each with its consequences.

A leaf says whose fault it is, whether trying again can help, and which HTTP and gRPC status it becomes. Numbers
that explain the failure travel as attributes, so that both ends of a wire can rebuild the same error. This module
knows nothing of HTTP or gRPC libraries: statuses are plain numbers and names.

    PrfaasError
     +- RequestError            the caller must change the request
     |   +- InvalidRequest, UnsupportedParameter, UnknownModel, PromptTooLong, Unauthenticated, PermissionDenied
     +- CapacityError           the request is fine, the system is busy: retry after a while
     |   +- QueueFull, RateLimited, NoWorkerAvailable, Draining, OutOfBlocks, DeadlineExceeded
     +- TransferError           one transfer of a KV cache failed; another source may succeed
     |   +- FingerprintMismatch, ChunkCorrupt, DigestMismatch, ProtocolViolation, TransferBroken, TransferStalled, TransferGone
     +- WorkerError             a worker failed the request; another worker may succeed
     |   +- WorkerUnreachable, EngineFailed, RequestCancelled
     +- OperatorError           the deployment must change
         +- ConfigError, ModelLoadError, FetchError, StartupError
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import ClassVar


class Fault(StrEnum):
    """Who has to act for the error to go away."""

    CLIENT = "client"
    CAPACITY = "capacity"
    PEER = "peer"
    SERVER = "server"
    OPERATOR = "operator"


class Retry(StrEnum):
    """What a caller may usefully do next."""

    NEVER = "never"
    LATER = "later"
    ELSEWHERE = "elsewhere"


Detail = str | int | float | bool | None


class PrfaasError(Exception):
    """Root of the tree. `detail` holds the numbers behind the message; it never holds prompt text."""

    code: ClassVar[str] = "internal_error"
    fault: ClassVar[Fault] = Fault.SERVER
    retry: ClassVar[Retry] = Retry.NEVER
    http_status: ClassVar[int] = 500
    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **detail: Detail) -> None:
        super().__init__(message)
        self.message = message
        self.detail: dict[str, Detail] = detail

    @property
    def retry_after_s(self) -> float | None:
        """Seconds after which a retry is sensible, if the raiser knew."""
        value = self.detail.get("retry_after_s")
        return float(value) if isinstance(value, int | float) else None

    def to_json(self) -> str:
        """Serialise code, message and detail, for gRPC trailing metadata. Inverse of `error_from_json`."""
        return json.dumps({"code": self.code, "message": self.message, "detail": self.detail})


class RequestError(PrfaasError):
    """The caller sent something that can never succeed as it is."""

    code = "invalid_request"
    fault = Fault.CLIENT
    http_status = 400
    grpc_status = "INVALID_ARGUMENT"


class InvalidRequest(RequestError):
    """A field is malformed, missing or out of range; `param` names it."""

    @property
    def param(self) -> str | None:
        value = self.detail.get("param")
        return value if isinstance(value, str) else None


class UnsupportedParameter(InvalidRequest):
    """A known parameter that this deployment or model cannot honour; it is refused rather than ignored."""

    code = "unsupported_parameter"


class UnknownModel(RequestError):
    code = "model_not_found"
    http_status = 404
    grpc_status = "NOT_FOUND"


class PromptTooLong(InvalidRequest):
    """Prompt plus requested output exceed the context; detail: prompt_tokens, max_context_tokens, excess_tokens."""

    code = "context_length_exceeded"


class Unauthenticated(RequestError):
    code = "invalid_api_key"
    http_status = 401
    grpc_status = "UNAUTHENTICATED"


class PermissionDenied(RequestError):
    code = "permission_denied"
    http_status = 403
    grpc_status = "PERMISSION_DENIED"


class CapacityError(PrfaasError):
    """Nothing is wrong with the request; there is no room for it now."""

    code = "overloaded"
    fault = Fault.CAPACITY
    retry = Retry.LATER
    http_status = 503
    grpc_status = "RESOURCE_EXHAUSTED"


class QueueFull(CapacityError):
    """A bounded queue is full; detail: depth, limit, retry_after_s."""

    code = "queue_full"
    retry = Retry.ELSEWHERE
    http_status = 429


class RateLimited(CapacityError):
    code = "rate_limit_exceeded"
    http_status = 429


class NoWorkerAvailable(CapacityError):
    """No registered worker can take the request; detail: role, model, site."""

    code = "no_worker_available"
    grpc_status = "UNAVAILABLE"


class Draining(CapacityError):
    """This worker or router is leaving and takes no new work."""

    code = "draining"
    retry = Retry.ELSEWHERE
    grpc_status = "UNAVAILABLE"


class OutOfBlocks(CapacityError):
    """The cache pool cannot hold the sequence; detail: needed_blocks, free_blocks, group."""

    code = "out_of_cache_blocks"
    retry = Retry.ELSEWHERE


class DeadlineExceeded(CapacityError):
    code = "deadline_exceeded"
    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"


class TransferError(PrfaasError):
    """A KV transfer did not complete. Nothing of it is ever computed on."""

    code = "transfer_failed"
    fault = Fault.PEER
    retry = Retry.ELSEWHERE
    http_status = 502
    grpc_status = "UNAVAILABLE"


class FingerprintMismatch(TransferError):
    """The ends disagree on model, tokenizer, cache spec or wire version; detail: field, ours, theirs."""

    code = "fingerprint_mismatch"
    fault = Fault.OPERATOR
    grpc_status = "FAILED_PRECONDITION"


class ChunkCorrupt(TransferError):
    """A chunk's CRC32C does not match its payload; detail: seq, expected, actual."""

    code = "chunk_corrupt"
    grpc_status = "DATA_LOSS"


class DigestMismatch(TransferError):
    code = "digest_mismatch"
    grpc_status = "DATA_LOSS"


class ProtocolViolation(TransferError):
    """The peer sent a frame that the state machine does not allow; detail: state, frame."""

    code = "protocol_violation"
    grpc_status = "FAILED_PRECONDITION"


class TransferBroken(TransferError):
    """Every lane is gone and resuming did not succeed."""

    code = "transfer_broken"


class TransferStalled(TransferError):
    """No progress within the progress deadline; detail: idle_s."""

    code = "transfer_stalled"


class TransferGone(TransferError):
    """The sender no longer holds this transfer: committed, cancelled, or its lease ran out."""

    code = "transfer_gone"
    grpc_status = "NOT_FOUND"


class WorkerError(PrfaasError):
    code = "worker_failed"
    retry = Retry.ELSEWHERE
    http_status = 502


class WorkerUnreachable(WorkerError):
    """No connection to the worker, or it vanished in mid-call; detail: worker_id."""

    code = "worker_unreachable"
    fault = Fault.PEER
    http_status = 503
    grpc_status = "UNAVAILABLE"


class EngineFailed(WorkerError):
    """The engine raised while executing a step; every sequence of that step is failed with this error."""

    code = "engine_failed"
    http_status = 500


class RequestCancelled(WorkerError):
    """The caller went away or asked to stop. Nothing is owed to it any more."""

    code = "cancelled"
    fault = Fault.CLIENT
    retry = Retry.NEVER
    http_status = 499
    grpc_status = "CANCELLED"


class OperatorError(PrfaasError):
    """The process cannot do its work until somebody changes its settings, files or environment."""

    code = "operator_error"
    fault = Fault.OPERATOR
    grpc_status = "FAILED_PRECONDITION"


class ConfigError(OperatorError):
    code = "bad_config"


class ModelLoadError(OperatorError):
    code = "model_load_failed"


class FetchError(OperatorError):
    """A model file could not be fetched or its checksum differs; detail: source, expected, actual."""

    code = "fetch_failed"


class StartupError(OperatorError):
    """A child process or pool did not become ready in time; detail: what, waited_s."""

    code = "startup_failed"


def _leaves(cls: type[PrfaasError]) -> dict[str, type[PrfaasError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found.update(_leaves(sub))  # where a leaf inherits its branch's code, the code means the leaf
    return found


def error_from_json(text: str) -> PrfaasError:
    """Rebuild the error that a peer serialised with `to_json`; unknown codes become the root class.

    Raises:
        ValueError: the text is not such a document.
    """
    document = json.loads(text)
    if not isinstance(document, dict) or not isinstance(document.get("message"), str):
        raise ValueError("not a serialised PrfaasError")
    raw = document.get("detail")
    detail: dict[str, Detail] = {}
    if isinstance(raw, dict):
        detail = {str(k): v for k, v in raw.items() if isinstance(v, str | int | float | bool | None)}
    cls = _leaves(PrfaasError).get(str(document.get("code")), PrfaasError)
    error = cls(document["message"])
    error.detail.update(detail)
    return error
