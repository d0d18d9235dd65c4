"""The command line's view of a router, against a small HTTP server with scripted answers."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.console import Console

from prfaas.cli.router_api import Piece, RouterApi, Summary
from prfaas.cli.screen import Screen
from prfaas.cli.status import show_status
from prfaas.errors import InvalidRequest, WorkerUnreachable

REPORT = {"route": "remote", "kv_bytes": 5}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


class Script:
    """What the server answers: status and body by path. Bodies that are lists are sent as events."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[dict[str, str], Any]] = []


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def api(script: Script) -> Iterator[RouterApi]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            script.asked.append((dict(self.headers), body))
            self.reply()

        def reply(self) -> None:
            status, body = script.answers[self.path]
            data = "".join(body) if isinstance(body, list) else json.dumps(body) if not isinstance(body, str) else body
            self.send_response(status)
            self.send_header("Content-Length", str(len(data.encode())))
            self.end_headers()
            self.wfile.write(data.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    api = RouterApi(f"http://127.0.0.1:{server.server_port}/", api_key="secret")
    yield api
    api.close()
    server.shutdown()
    server.server_close()


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def delta(text: str | None) -> str:
    return event(choices=[{"delta": {"content": text}}])


def test_health_counts_workers_and_tells_ready_from_starting(api: RouterApi, script: Script) -> None:
    body = {
        "status": "ok",
        "reduced": True,
        "model": "m",
        "workers": {"decode:healthy": 2, "prefill:unhealthy": 1},
        "in_flight": 4,
    }
    script.answers["/health"] = (200, body)
    health = api.health()
    assert health is not None
    assert (health.ready, health.reduced, health.model, health.in_flight) == (True, True, "m", 4)
    assert (health.healthy("decode"), health.healthy("prefill")) == (2, 0)
    script.answers["/health"] = (503, {"status": "starting"})
    starting = api.health()
    assert starting is not None
    assert not starting.ready


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, {"other": 1}), (404, [])])
def test_something_else_on_the_port_is_not_a_router(api: RouterApi, script: Script, answer: tuple[int, Any]) -> None:
    script.answers["/health"] = answer
    assert api.health() is None


def test_nobody_on_the_port_is_not_a_router() -> None:
    api = RouterApi("http://127.0.0.1:1")
    assert api.health() is None
    with pytest.raises(WorkerUnreachable, match=r"http://127\.0\.0\.1:1"):
        api.model()
    with pytest.raises(WorkerUnreachable):
        list(api.chat("m", [{"role": "user", "content": "x"}]))
    api.close()


def test_chat_yields_pieces_then_a_summary(api: RouterApi, script: Script) -> None:
    thought = event(choices=[{"delta": {"reasoning_content": "hm"}}])
    end = event(choices=[], usage=USAGE, prfaas=REPORT)
    stream = [": keep-alive\n\n", delta(None), thought, delta("Hel"), delta("lo"), end]
    script.answers["/v1/chat/completions"] = (200, [*stream, "data: [DONE]\n\n"])
    events = list(api.chat("m", [{"role": "user", "content": "x"}], max_tokens=5, temperature=0))
    pieces = [e for e in events if isinstance(e, Piece)]
    assert [(piece.text, piece.thinking) for piece in pieces] == [("hm", True), ("Hel", False), ("lo", False)]
    (summary,) = [e for e in events if isinstance(e, Summary)]
    assert events[-1] is summary
    assert (summary.usage, summary.report) == (USAGE, REPORT)
    assert 0 < pieces[0].at_s <= pieces[1].at_s <= summary.total_s
    headers, body = script.asked[0]
    assert headers["Authorization"] == "Bearer secret"
    assert (body["stream"], body["max_tokens"], body["temperature"]) == (True, 5, 0)


def test_options_that_were_not_given_are_not_sent(api: RouterApi, script: Script) -> None:
    script.answers["/v1/chat/completions"] = (200, ["data: [DONE]\n\n"])
    list(api.chat("m", []))
    assert set(script.asked[0][1]) == {"model", "messages", "stream", "stream_options"}


def test_a_refusal_carries_the_routers_message(api: RouterApi, script: Script) -> None:
    script.answers["/v1/chat/completions"] = (400, {"error": {"message": "say please"}})
    with pytest.raises(InvalidRequest, match="answered 400: say please"):
        list(api.chat("m", []))


def test_an_error_within_the_stream_is_raised(api: RouterApi, script: Script) -> None:
    script.answers["/v1/chat/completions"] = (200, [delta("so far"), event(error={"message": "it broke"})])
    events = api.chat("m", [])
    assert isinstance(next(events), Piece)
    with pytest.raises(InvalidRequest, match="it broke"):
        next(events)


WORKER = {
    "id": "pd-decode-0", "role": "decode", "device": "cpu", "state": "converting", "becomes": "pd_prefill", "age_s": 0.24,
    "running": 3, "max_running": 16, "waiting": 2, "waiting_prefill_tokens": 12_345, "transfers": 1,
    "blocks": {"used": 25, "cached": 50, "free": 25}, "prefill_tokens_per_s": 0.0,
}  # fmt: skip
HEALTH = {"status": "ok", "reduced": False, "model": "m", "workers": {"decode:unhealthy": 1}, "in_flight": 3}


def test_status_has_a_row_for_each_worker(api: RouterApi, script: Script) -> None:
    script.answers["/health"] = (200, HEALTH)
    script.answers["/live/state"] = (200, {"sites": [{"name": "pd", "workers": [WORKER]}]})
    said = io.StringIO()
    assert show_status(api.base_url, None, as_json=False, screen=Screen(Console(file=said, width=160))) == 0
    (row,) = [line for line in said.getvalue().splitlines() if "pd-decode-0" in line]
    for cell in ("decode", "cpu", "becomes pd_prefill", "3/16", "2 (12,345 tokens)", "25%", "50%", "0.2 s ago"):
        assert cell in row


def test_status_without_leave_to_see_the_workers_still_tells_the_health(api: RouterApi, script: Script) -> None:
    script.answers["/health"] = (200, HEALTH)
    script.answers["/live/state"] = (401, {"error": {"message": "a key is needed"}})
    said = io.StringIO()
    assert show_status(api.base_url, None, as_json=False, screen=Screen(Console(file=said, width=160))) == 0
    assert "3 requests in flight" in said.getvalue()
