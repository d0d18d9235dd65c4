"""gRPC as prfaas uses it: tuned channels and servers, mutual TLS with reload, and typed errors over a call's end.

An error raised on one side is rebuilt on the other from the call's trailing metadata. This module knows no service
and no message; it is the only place that chooses channel options and reads certificate files.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from prfaas.clock import Clock, MonotonicClock
from prfaas.config import TlsSettings
from prfaas.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    PermissionDenied,
    PrfaasError,
    RequestCancelled,
    StartupError,
    Unauthenticated,
    WorkerError,
    WorkerUnreachable,
    error_from_json,
)

ERROR_KEY = "prfaas-error"
MAX_MESSAGE_BYTES = 32 * 1024**2  # a prompt of a million tokens takes about 4 MiB, a chunk at most 16 MiB
MAX_ERROR_BYTES = 4096  # of trailing metadata; peers drop a call whose metadata passes 8 KiB
KEEPALIVE_TIME_MS = 10_000
KEEPALIVE_TIMEOUT_MS = 5_000
# A first guess of bandwidth x delay, so that a transfer does not start with HTTP/2's 64 KiB; the BDP probe raises it.
# It is also what a stream that nobody reads may make its receiver hold.
WINDOW_BYTES = 1024**2
GATHER_BYTES = 256 * 1024  # what is gathered into one message; a larger one travels alone

M = TypeVar("M", bound=Message)
Options = list[tuple[str, int | str]]

_FOREIGN: dict[grpc.StatusCode, type[PrfaasError]] = {
    grpc.StatusCode.UNAVAILABLE: WorkerUnreachable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: RequestCancelled,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.RESOURCE_EXHAUSTED: InvalidRequest,  # gRPC's own: a message above MAX_MESSAGE_BYTES
}


def encode_error(error: PrfaasError) -> str:
    """The error as ASCII of at most MAX_ERROR_BYTES; a message or detail that does not fit is cut."""
    text = error.to_json()
    if len(text) <= MAX_ERROR_BYTES:
        return text
    short = type(error)(error.message[: MAX_ERROR_BYTES // 8])
    return short.to_json()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: PrfaasError) -> NoReturn:
    """End a call with a typed error that the caller's `from_rpc` rebuilds. Raises grpc's AbortError."""
    status = grpc.StatusCode[error.grpc_status]
    await context.abort(status, error.message[:1024], trailing_metadata=((ERROR_KEY, encode_error(error)),))
    raise AssertionError("context.abort returned")


def carries_error(error: grpc.aio.AioRpcError) -> bool:
    """Whether the peer's own code raised: False for what gRPC and the network report."""
    trailing: Any = error.trailing_metadata()
    return any(key == ERROR_KEY for key, _ in trailing or ())


def from_rpc(error: grpc.aio.AioRpcError, *, worker_id: str = "") -> PrfaasError:
    """The typed error behind a failed call: what the peer raised, or what its status means when it raised nothing.

    `worker_id` names the peer in errors that are made here. Raise the result `from` the call's error.
    """
    trailing: Any = error.trailing_metadata()  # an iterable of pairs; the stubs do not know
    for key, value in trailing or ():
        if key == ERROR_KEY:
            try:
                return error_from_json(value)
            except ValueError:
                break
    kind = _FOREIGN.get(error.code(), WorkerError)
    who = f"worker {worker_id}" if worker_id else "the peer"
    return kind(f"{who}: {error.code().name.lower()}: {error.details() or 'no details'}", worker_id=worker_id)


def is_local(host: str) -> bool:
    """True for loopback addresses, "localhost" and unix sockets: traffic that never leaves this machine."""
    if host == "localhost" or host.startswith("unix:"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host part of "host:port" or "[v6]:port"; a unix address is returned whole."""
    if address.startswith("unix:"):
        return address
    return address.rsplit(":", 1)[0].strip("[]")


def require_private(host: str, tls: TlsSettings) -> None:
    """Raise ConfigError when plaintext would leave this machine without having been asked for."""
    if not (tls.enabled or tls.allow_plaintext or is_local(host)):
        raise ConfigError(
            f"{host} is not a loopback address and no certificate is configured: set tls.ca_file, tls.cert_file and "
            "tls.key_file, or tls.allow_plaintext where the network itself is trusted"
        )


@dataclass(frozen=True, slots=True)
class TlsMaterial:
    """PEM bytes of one moment."""

    ca: bytes
    cert: bytes
    key: bytes


class TlsFiles:
    """Certificate files that operators replace while the process runs. Stat'ed at most every `reload_s` seconds.

    Files that cannot be read or do not fit together keep the old material, after the first time: certificates are
    replaced file by file, and the moment between two of them is not an outage.
    """

    def __init__(self, tls: TlsSettings, clock: Clock | None = None) -> None:
        if tls.ca_file is None or tls.cert_file is None or tls.key_file is None:
            raise ConfigError("mutual TLS needs tls.ca_file, tls.cert_file and tls.key_file")
        self._paths: tuple[Path, Path, Path] = (tls.ca_file, tls.cert_file, tls.key_file)
        self._reload_s = tls.reload_s
        self._clock = clock or MonotonicClock()
        self._stamp = self._stat()
        self._material = self._read()
        self._checked_s = self._clock.now_s()

    def current(self) -> TlsMaterial:
        """The newest readable material."""
        now_s = self._clock.now_s()
        if now_s - self._checked_s >= self._reload_s:
            self._checked_s = now_s
            try:
                stamp = self._stat()
                if stamp != self._stamp:
                    self._material = self._read()
                    self._stamp = stamp
            except ConfigError:
                return self._material
        return self._material

    def _stat(self) -> tuple[tuple[int, int, int], ...]:
        try:
            return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (path.stat() for path in self._paths))
        except OSError as error:
            raise ConfigError(f"cannot read a TLS file: {error}") from error

    def _read(self) -> TlsMaterial:
        try:
            material = TlsMaterial(*(path.read_bytes() for path in self._paths))
        except OSError as error:
            raise ConfigError(f"cannot read a TLS file: {error}") from error
        require_usable(*self._paths)
        return material


def require_usable(ca: Path, cert: Path, key: Path) -> None:
    """Raise ConfigError for files of which gRPC would say only that a port cannot be bound or a peer not be reached."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(ca)
    except OSError as error:
        raise ConfigError(f"tls.ca_file {ca} has no certificate in PEM: {error}") from error
    try:
        context.load_cert_chain(cert, key, password="")  # never a prompt: a key with a password is refused
    except OSError as error:
        pair = f"tls.cert_file {cert} and tls.key_file {key}"
        raise ConfigError(f"{pair} are not a certificate in PEM and its own key without a password: {error}") from error


def common_options(max_message_bytes: int = MAX_MESSAGE_BYTES) -> Options:
    """Options of both ends: message bound, dead-peer detection and a window fit for a long path."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 1),
    ]


def channel_credentials(material: TlsMaterial) -> grpc.ChannelCredentials:
    """Client credentials that present our certificate and trust the deployment's CA only."""
    return grpc.ssl_channel_credentials(
        root_certificates=material.ca, private_key=material.key, certificate_chain=material.cert
    )


def channel(
    address: str,
    tls: TlsSettings,
    *,
    own_connection: bool = False,
    files: TlsFiles | None = None,
    extra_options: Sequence[tuple[str, int | str]] = (),
) -> grpc.aio.Channel:
    """A channel to "host:port". It connects on first use and reconnects by itself.

    Equal channels of one process share a TCP connection unless `own_connection` is set. A channel keeps the
    certificate it was made with; `files` lets a caller that makes many channels share one `TlsFiles`.

    Raises:
        ConfigError: plaintext to another machine without `tls.allow_plaintext`, or unreadable certificate files.
    """
    require_private(host_of(address), tls)
    chosen = dict(extra_options)  # gRPC would believe the first of two values
    options: Options = [
        *((name, value) for name, value in common_options() if name not in chosen),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 2000),
        *extra_options,
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    if not tls.enabled:
        return grpc.aio.insecure_channel(address, options=options)
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    material = (files or TlsFiles(tls)).current()
    return grpc.aio.secure_channel(address, channel_credentials(material), options=options)


def server(
    *, max_concurrent_rpcs: int | None = None, interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = ()
) -> grpc.aio.Server:
    """A server with our options and no port yet; calls above `max_concurrent_rpcs` end with RESOURCE_EXHAUSTED."""
    options: Options = [
        *common_options(),
        ("grpc.so_reuseport", 0),  # a second process on our port is an error, not a partner
        ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    return grpc.aio.server(options=options, maximum_concurrent_rpcs=max_concurrent_rpcs, interceptors=list(interceptors))


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Server credentials that demand a client certificate of our CA and follow the files as they change."""

    def configuration(material: TlsMaterial) -> Any:
        return grpc.ssl_server_certificate_configuration([(material.key, material.cert)], root_certificates=material.ca)

    return grpc.dynamic_ssl_server_credentials(
        configuration(files.current()), lambda: configuration(files.current()), require_client_authentication=True
    )


def bind(server: grpc.aio.Server, host: str, port: int, tls: TlsSettings) -> int:
    """Open a port (0: let the system choose) and return its number.

    Raises:
        ConfigError: plaintext on a non-loopback address without `tls.allow_plaintext`, or unreadable certificates.
        StartupError: the port cannot be bound.
    """
    require_private(host, tls)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls.enabled:
            bound = server.add_secure_port(address, server_credentials(TlsFiles(tls)))
        else:
            bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}: {error}", what=address) from error
    if bound == 0:
        raise StartupError(f"cannot listen on {address}", what=address)
    return int(bound)


class Gathered(Generic[M]):
    """Messages on their way into one stream: those put while the stream is busy with earlier ones leave as one, merged.

    So a stream costs what its reader and its link can take in messages, however many there are to send. Used from one loop.
    """

    def __init__(self) -> None:
        self._waiting: deque[M] = deque()
        self._news = asyncio.Event()
        self._closed = False

    def put(self, message: M) -> None:
        """Raises InvalidRequest for a message that no receiver takes."""
        size_bytes = message.ByteSize()
        if size_bytes > MAX_MESSAGE_BYTES - GATHER_BYTES:
            raise InvalidRequest(
                f"{size_bytes} bytes are more than one message carries", limit=MAX_MESSAGE_BYTES - GATHER_BYTES
            )
        self._waiting.append(message)
        self._news.set()

    def close(self) -> None:
        """Nothing more will be put."""
        self._closed = True
        self._news.set()

    async def take(self) -> M | None:
        """The next message, or None once it is closed and all have been taken. Waits until there is one."""
        while not self._waiting:
            if self._closed:
                return None
            self._news.clear()
            await self._news.wait()
        message = self._waiting.popleft()
        size_bytes = message.ByteSize() if self._waiting else 0
        while self._waiting and (size_bytes := size_bytes + self._waiting[0].ByteSize()) <= GATHER_BYTES:
            message.MergeFrom(self._waiting.popleft())
        return message
