"""Clients that send slowly, or without end, keep nobody else out and hold nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from router import http_protocol
from router.gateway import arrivals
from tests.support.http_server import ServedGateway, served_gateway

BODY = {"model": "test-model", "messages": [{"role": "user", "content": "x"}]}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


@pytest.fixture
def gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServedGateway]:
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.3)
    with served_gateway(tmp_path, limits={"max_in_flight": 2}) as served:
        yield served


def connect(gateway: ServedGateway) -> socket.socket:
    parts = urlsplit(gateway.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=5)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
    return got


def sent_until_refused(connection: socket.socket, most: int) -> int:
    """Bytes taken of a line that does not end."""
    sent = 0
    try:
        while sent < most:
            sent += connection.send(b"a" * 65536)
            time.sleep(0.001)
    except (ConnectionResetError, BrokenPipeError):
        pass
    return sent


def test_bodies_that_never_end_hold_no_place(gateway: ServedGateway) -> None:
    slow = [connect(gateway) for _ in range(8)]
    for connection in slow:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
    for _ in range(3):
        assert httpx.post(f"{gateway.url}/v1/chat/completions", json=BODY).status_code == 200
    assert httpx.get(f"{gateway.url}/health").json()["in_flight"] == 0
    for connection in slow:
        connection.close()


def test_a_body_that_never_ends_is_answered_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals.Arrivals.__init__, "__kwdefaults__", {"timeout_s": 0.2, "arriving_bytes": 1000})
    with served_gateway(tmp_path) as gateway, connect(gateway) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n{")
        got = answer(connection)
    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in got
    assert b"body_timeout" in got


@pytest.mark.parametrize("begun", [b"", b"GET /health HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_never_end_are_answered_in_time(gateway: ServedGateway, begun: bytes) -> None:
    with connect(gateway) as connection:
        connection.sendall(begun)
        assert answer(connection).startswith(b"HTTP/1.1 408 ")


def test_a_header_block_without_end_is_refused_after_little(gateway: ServedGateway) -> None:
    with connect(gateway) as connection:
        connection.sendall(b"GET /")
        assert sent_until_refused(connection, most=64 * 1024**2) < 8 * 1024**2
    assert httpx.get(f"{gateway.url}/health").status_code == 200


def test_a_kept_connection_may_ask_again_and_wait_in_between(gateway: ServedGateway) -> None:
    with httpx.Client() as client:
        for _ in range(3):
            big = {**BODY, "messages": [{"role": "user", "content": "word " * 10}]}
            assert client.post(f"{gateway.url}/v1/chat/completions", json=big).status_code == 200
            time.sleep(0.4)


def test_requests_in_one_read_are_all_answered(gateway: ServedGateway) -> None:
    with connect(gateway) as connection:
        ask = b"GET /health HTTP/1.1\r\nhost: x\r\nx-pad: " + b"p" * 30000 + b"\r\n"
        connection.sendall((ask + b"\r\n") * 4 + ask + b"connection: close\r\n\r\n")
        assert answer(connection).count(b"HTTP/1.1 200 OK") == 5
