"""Hub ids, against a small hub of our own on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from prfaas.artifacts.hub import fetch_hub_model, is_hub_id
from prfaas.errors import FetchError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves repositories by the parts of the hub's HTTP interface that a snapshot download uses."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        path = request.path.partition("?")[0].strip("/")
        is_api = path.startswith("api/models/")
        repo = "/".join(path.removeprefix("api/models/").split("/")[:2])
        files = self.repositories.get(repo)
        if files is None or repo in self.gated:
            code = "GatedRepo" if repo in self.gated else "RepoNotFound"
            self._send(request, 403 if repo in self.gated else 404, b"{}", {"X-Error-Code": code}, body=body)
        elif is_api and "/tree/" in path:
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
            self._send(request, 200, json.dumps(entries).encode(), {}, body=body)
        elif is_api:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in files.items()]
            info = {"_id": "1", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings}
            self._send(request, 200, json.dumps(info).encode(), {}, body=body)
        else:
            name = path.split("/resolve/")[1].partition("/")[2]
            self.served += [name] if body else []
            headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT}
            self._send(request, 200, files[name], headers, body=body)

    def _send(self, request: BaseHTTPRequestHandler, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        request.send_response(status)
        for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if body:
            request.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[Hub]:
    made = Hub()
    made.repositories["owner/model"] = {
        "config.json": b'{"model_type": "llama"}',
        "model-00001-of-00001.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"template",
        "pytorch_model.bin": b"the same weights again",
        "README.md": b"prose",
    }
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub of this test is reachable whatever the environment says of the real one."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def test_fetches_what_serving_needs_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    path = fetch_hub_model("owner/model", endpoint=hub.endpoint, cache=tmp_path)
    names = {file.name for file in path.iterdir()}
    assert names == {"config.json", "model-00001-of-00001.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert (path / "model-00001-of-00001.safetensors").read_bytes() == b"weights"


def test_a_second_time_no_file_is_sent_again(hub: Hub, tmp_path: Path) -> None:
    first = fetch_hub_model("owner/model", endpoint=hub.endpoint, cache=tmp_path)
    hub.served.clear()
    assert fetch_hub_model("owner/model", endpoint=hub.endpoint, cache=tmp_path) == first
    assert hub.served == []


def test_a_missing_repository_is_said_to_be_missing_or_private(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="no such repository, or a private one"):
        fetch_hub_model("owner/absent", endpoint=hub.endpoint, cache=tmp_path)


def test_a_gated_repository_says_how_to_get_in(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("owner/model")
    with pytest.raises(FetchError, match="HF_TOKEN"):
        fetch_hub_model("owner/model", endpoint=hub.endpoint, cache=tmp_path)


def test_a_repository_without_safetensors_is_refused(hub: Hub, tmp_path: Path) -> None:
    del hub.repositories["owner/model"]["model-00001-of-00001.safetensors"]
    with pytest.raises(FetchError, match="no safetensors"):
        fetch_hub_model("owner/model", endpoint=hub.endpoint, cache=tmp_path)


def test_without_a_network_the_error_says_what_to_check(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="HF_ENDPOINT"):
        fetch_hub_model("owner/model", endpoint="http://127.0.0.1:1", cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/model", True),
        ("owner/model-1.5B@main", True),
        ("model", False),
        ("a/b/c", False),
        ("../x", False),
        ("a/", False),
    ],
)
def test_what_looks_like_a_hub_id(name: str, expected: bool) -> None:
    assert is_hub_id(name) is expected


def test_a_router_fetches_no_weights(hub: Hub, tmp_path: Path) -> None:
    path = fetch_hub_model("owner/model", weights=False, endpoint=hub.endpoint, cache=tmp_path)
    assert {file.name for file in path.iterdir()} == {"config.json", "tokenizer.json", "chat_template.jinja"}
