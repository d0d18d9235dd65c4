"""What gRPC users share: typed errors across a call, private addresses, certificates that change on disk."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from prfaas import rpc
from prfaas.clock import ManualClock
from prfaas.config import TlsSettings
from prfaas.errors import (
    ConfigError,
    DeadlineExceeded,
    EngineFailed,
    InvalidRequest,
    PrfaasError,
    QueueFull,
    StartupError,
    WorkerError,
    WorkerUnreachable,
    error_from_json,
)
from prfaas.pb import common_pb2, decode_pb2
from tests.support.certs import Authority


def failed_call(
    code: grpc.StatusCode, trailing: tuple[tuple[str, str], ...] = (), details: str = "why"
) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details)


def test_a_raised_error_comes_back_as_itself() -> None:
    raised = QueueFull("voll: ü\n", depth=3, retry_after_s=1.5)
    call = failed_call(grpc.StatusCode.RESOURCE_EXHAUSTED, ((rpc.ERROR_KEY, rpc.encode_error(raised)),))
    got = rpc.from_rpc(call)
    assert rpc.carries_error(call)
    assert (type(got), got.message, got.detail) == (QueueFull, raised.message, raised.detail)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, WorkerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequest),
        (grpc.StatusCode.UNIMPLEMENTED, WorkerError),
        (grpc.StatusCode.INTERNAL, WorkerError),
    ],
)
def test_a_foreign_status_becomes_an_error_that_names_the_worker(code: grpc.StatusCode, kind: type[PrfaasError]) -> None:
    call = failed_call(code)
    error = rpc.from_rpc(call, worker_id="p7")
    assert not rpc.carries_error(call)
    assert type(error) is kind
    assert "p7" in error.message
    assert "why" in error.message
    assert error.detail["worker_id"] == "p7"


def test_garbage_in_the_metadata_is_not_trusted() -> None:
    call = failed_call(grpc.StatusCode.UNAVAILABLE, ((rpc.ERROR_KEY, "{not json"),))
    assert type(rpc.from_rpc(call)) is WorkerUnreachable


def test_a_long_error_is_cut_to_what_metadata_can_carry() -> None:
    text = rpc.encode_error(EngineFailed("x" * 50_000, step=1))
    assert len(text) <= rpc.MAX_ERROR_BYTES
    assert text.isascii()
    assert isinstance(error_from_json(text), EngineFailed)
    assert len(rpc.encode_error(EngineFailed("ü" * 50_000))) <= rpc.MAX_ERROR_BYTES


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "unix:/tmp/x"])
def test_local_hosts_may_be_plaintext(host: str) -> None:
    assert rpc.is_local(host)
    rpc.require_private(host, TlsSettings())


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "0.0.0.0", "::", ""])
def test_other_hosts_may_not(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="allow_plaintext"):
        rpc.require_private(host, TlsSettings())
    rpc.require_private(host, TlsSettings(allow_plaintext=True))
    rpc.require_private(host, TlsSettings(cert_file=tmp_path / "cert.pem"))


@pytest.mark.parametrize(
    ("address", "host"), [("a:1", "a"), ("[::1]:5", "::1"), ("10.0.0.1:80", "10.0.0.1"), ("unix:/tmp/x", "unix:/tmp/x")]
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert rpc.host_of(address) == host


def files_in(directory: Path) -> TlsSettings:
    """Certificate files, new ones at each call."""
    return Authority.make().issue(directory).model_copy(update={"reload_s": 5.0})


def material_in(directory: Path) -> rpc.TlsMaterial:
    return rpc.TlsMaterial(*((directory / f"{name}.pem").read_bytes() for name in ("ca", "cert", "key")))


def test_certificates_are_read_again_when_they_have_changed_and_it_is_time(tmp_path: Path) -> None:
    clock = ManualClock()
    files, first = rpc.TlsFiles(files_in(tmp_path), clock), material_in(tmp_path)
    files_in(tmp_path)
    clock.advance(4.9)
    assert files.current() == first
    clock.advance(0.2)
    assert files.current() == material_in(tmp_path) != first


def test_a_file_that_is_missing_for_a_moment_is_not_an_outage(tmp_path: Path) -> None:
    clock = ManualClock()
    files, first = rpc.TlsFiles(files_in(tmp_path), clock), material_in(tmp_path)
    (tmp_path / "key.pem").unlink()
    clock.advance(10)
    assert files.current() == first
    files_in(tmp_path)
    clock.advance(10)
    assert files.current() == material_in(tmp_path) != first


def test_a_new_certificate_waits_for_its_key(tmp_path: Path) -> None:
    clock = ManualClock()
    files, first = rpc.TlsFiles(files_in(tmp_path), clock), material_in(tmp_path)
    files_in(tmp_path)
    late_key = (tmp_path / "key.pem").read_bytes()
    (tmp_path / "key.pem").write_bytes(first.key)
    clock.advance(10)
    assert files.current() == first
    (tmp_path / "key.pem").write_bytes(late_key)
    clock.advance(10)
    assert files.current() == material_in(tmp_path) != first


@pytest.mark.parametrize(("name", "setting"), [("ca", "tls.ca_file"), ("cert", "tls.cert_file"), ("key", "tls.key_file")])
def test_a_tls_file_that_is_no_pem_is_named(tmp_path: Path, name: str, setting: str) -> None:
    tls = files_in(tmp_path)
    (tmp_path / f"{name}.pem").write_text("port: 8000\n")
    with pytest.raises(ConfigError, match=setting):
        rpc.TlsFiles(tls)


def test_a_certificate_with_the_key_of_another_is_refused(tmp_path: Path) -> None:
    ours, theirs = files_in(tmp_path / "ours"), files_in(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="its own key"):
        rpc.TlsFiles(ours.model_copy(update={"key_file": theirs.key_file}))


def test_incomplete_tls_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="ca_file"):
        rpc.TlsFiles(TlsSettings(cert_file=tmp_path / "cert"))
    with pytest.raises(ConfigError, match="cannot read"):
        rpc.TlsFiles(TlsSettings(ca_file=tmp_path / "a", cert_file=tmp_path / "b", key_file=tmp_path / "c"))


async def test_a_taken_port_is_a_startup_error() -> None:
    first, second = rpc.server(), rpc.server()
    port = rpc.bind(first, "127.0.0.1", 0, TlsSettings())
    with pytest.raises(StartupError, match=str(port)):
        rpc.bind(second, "127.0.0.1", port, TlsSettings())
    await first.stop(None)
    await second.stop(None)


def asked(*calls: int, salt: str = "") -> decode_pb2.GenerateRequests:
    request = common_pb2.GenerationRequest(cache_salt=salt)
    return decode_pb2.GenerateRequests(started=[decode_pb2.GenerateRequest(call=call, request=request) for call in calls])


async def test_what_gathers_leaves_as_one_message_in_order() -> None:
    gathered: rpc.Gathered[decode_pb2.GenerateRequests] = rpc.Gathered()
    gathered.put(asked(1))
    first = await gathered.take()
    for call in (2, 3, 4):
        gathered.put(asked(call))
    second = await gathered.take()
    assert first == asked(1)
    assert second == asked(2, 3, 4)


async def test_large_messages_are_not_gathered_beyond_the_bound() -> None:
    gathered: rpc.Gathered[decode_pb2.GenerateRequests] = rpc.Gathered()
    for call in range(3):
        gathered.put(asked(call, salt="x" * (rpc.GATHER_BYTES // 2 - 100)))
    assert [len(message.started) for message in [await gathered.take(), await gathered.take()] if message] == [2, 1]
    gathered.put(asked(7, salt="x" * 2 * rpc.GATHER_BYTES))
    gathered.put(asked(8))
    assert [len(message.started) for message in [await gathered.take(), await gathered.take()] if message] == [1, 1]


async def test_a_message_that_nobody_takes_is_refused_and_what_waits_is_not_lost_by_closing() -> None:
    gathered: rpc.Gathered[decode_pb2.GenerateRequests] = rpc.Gathered()
    with pytest.raises(InvalidRequest):
        gathered.put(asked(1, salt="x" * rpc.MAX_MESSAGE_BYTES))
    waiting = asyncio.create_task(gathered.take())
    await asyncio.sleep(0)
    gathered.put(asked(2))
    gathered.close()
    assert await waiting == asked(2)
    assert await gathered.take() is None
