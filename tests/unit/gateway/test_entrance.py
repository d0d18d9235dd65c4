"""The door: names, bounds, places, draining, and one count per request."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Scope

from router.gateway import reply
from tests.support.fake_pipeline import FakeFleet, Script
from tests.unit.gateway.conftest import Bench

BODY = {"model": "test-model", "messages": [{"role": "user", "content": "x"}]}


async def test_request_ids_are_honoured_or_made(bench: Bench) -> None:
    mine = await bench.client.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "abc-123"})
    assert mine.headers["x-request-id"] == "abc-123"
    refused = await bench.client.get("/v1/nothing", headers={"x-request-id": "abc-124"})
    assert refused.headers["x-request-id"] == "abc-124"
    for bad in ("x" * 129, "two words", ""):
        made = await bench.client.get("/health", headers={"x-request-id": bad})
        assert made.headers["x-request-id"].startswith("req-")


async def test_two_requests_of_one_name_stay_apart_below(bench: Bench) -> None:
    for _ in range(2):
        await bench.client.post("/v1/chat/completions", json=BODY, headers={"x-request-id": "same"})
    first, second = bench.pipeline.requests
    assert first.request_id != second.request_id


@pytest.mark.parametrize(
    "trace", ["nonsense", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "ff-" + "a" * 32 + "-" + "b" * 16 + "-01"]
)
async def test_malformed_trace_parents_are_dropped(bench: Bench, trace: str) -> None:
    await bench.client.post("/v1/chat/completions", json=BODY, headers={"traceparent": trace})
    assert bench.pipeline.requests[0].trace_parent == ""


class TestBounds:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"limits": {"max_body_bytes": 1000, "max_in_flight": 2, "max_messages": 3}}

    @pytest.mark.parametrize("chunked", [False, True])
    async def test_large_bodies(self, bench: Bench, chunked: bool) -> None:
        raw = b'{"model": "' + b"x" * 2000 + b'"}'

        async def pieces() -> Any:
            for at in range(0, len(raw), 100):
                yield raw[at : at + 100]

        headers = {"content-type": "application/json"}
        response = await bench.client.post("/v1/chat/completions", content=pieces() if chunked else raw, headers=headers)
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "body_too_large"
        assert "1000 bytes" in response.json()["error"]["message"]
        assert bench.metric("prfaas_requests_total", outcome="rejected", reason="body_too_large") == 1

    async def test_many_messages(self, bench: Bench) -> None:
        response = await bench.chat(messages=[{"role": "user", "content": "x"}] * 4)
        assert response.json()["error"]["message"] == "messages is 4, the limit is 3"

    async def test_more_requests_than_fit(self, bench: Bench) -> None:
        bench.pipeline.script = Script(prefill_delay_s=0.1)
        responses = await asyncio.gather(*(bench.chat() for _ in range(4)))
        assert sorted(response.status_code for response in responses) == [200, 200, 429, 429]
        refused = next(response for response in responses if response.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        assert (await bench.chat()).status_code == 200


async def test_draining_refuses_new_requests_and_lets_old_ones_end(bench: Bench) -> None:
    bench.pipeline.script = Script(prefill_delay_s=0.1)
    running = asyncio.ensure_future(bench.chat())
    await asyncio.sleep(0.03)
    bench.gate.drain()
    refused = await bench.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    health = await bench.client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["in_flight"]) == (503, "draining", 1)
    await asyncio.wait_for(bench.gate.empty(), 2)
    assert (await running).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after_s", [0.0, 0.05])
async def test_a_client_that_leaves_cancels_the_pipeline(bench: Bench, stream: bool, after_s: float) -> None:
    bench.pipeline.script = Script(prefill_delay_s=0.02, token_delay_s=0.02, replies=("one two three four five six",))
    gone = asyncio.Event()
    body = [{"type": "http.request", "body": _chat_body(stream), "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        assert message["type"].startswith("http.response")

    call = asyncio.ensure_future(bench.app(_scope(), receive, send))
    await bench.pipeline.started.wait()
    await asyncio.sleep(after_s)
    gone.set()
    await asyncio.wait_for(call, 1)
    assert bench.pipeline.ended == ["closed"]
    assert bench.metric("prfaas_requests_total", outcome="cancelled", reason="cancelled") == 1
    assert bench.metric("prfaas_requests_active") == 0


async def test_a_client_that_stops_reading_several_prompts_and_leaves_holds_nothing(bench: Bench) -> None:
    bench.pipeline.script = Script(replies=(" ".join(["word"] * 40),))
    gone, stuck = asyncio.Event(), asyncio.Event()
    asked = b'{"model": "test-model", "stream": true, "max_tokens": 60, "prompt": ["x", "y", "z"]}'
    body = [{"type": "http.request", "body": asked, "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await asyncio.sleep(3600)

    call = asyncio.ensure_future(bench.app({**_scope(), "path": "/v1/completions"}, receive, send))
    await asyncio.wait_for(stuck.wait(), 5)
    await asyncio.sleep(0.05)  # the other prompts' tokens fill what waits for the client
    gone.set()
    await asyncio.wait_for(call, 1)
    assert bench.pipeline.ended == ["closed"] * 3
    assert bench.metric("prfaas_requests_active") == 0


async def test_a_client_that_never_reads_does_not_outlive_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply, "LAST_WORDS_S", 0.05)

    async def never_reads(_: Message) -> None:
        await asyncio.sleep(3600)

    async def produce(sink: reply.EventSink) -> None:
        await sink.send(b"data: 1\n\n")

    async def connected() -> Message:
        await asyncio.sleep(3600)
        raise AssertionError

    answer = reply.StreamReply(produce, keepalive_s=60.0, limit_s=0.05, late=lambda error: error.code.encode())
    await asyncio.wait_for(answer(_scope(), connected, never_reads), 5)


def _chat_body(stream: bool) -> bytes:
    flag = b"true" if stream else b"false"
    return b'{"model": "test-model", "stream": %s, "messages": [{"role": "user", "content": "x"}]}' % flag


def _scope() -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "server": ("gateway", 80),
        "client": ("client", 1),
    }


async def test_health(bench: Bench) -> None:
    body = (await bench.client.get("/health")).json()
    assert (body["status"], body["reduced"]) == ("ok", False)
    assert body["workers"] == {"decode:healthy": 1, "prefill:healthy": 1}
    bench.fleet.reduced = True
    reduced = await bench.client.get("/health")
    assert (reduced.status_code, reduced.json()["reduced"]) == (200, True)
    bench.fleet.ready = False
    down = await bench.client.get("/health")
    assert (down.status_code, down.json()["status"]) == (503, "starting")


async def test_models(bench: Bench) -> None:
    listed = (await bench.client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["test-model"]
    assert (await bench.client.get("/v1/models/test-model")).json() == listed["data"][0]
    assert (await bench.client.get("/v1/models/org/other")).status_code == 404


async def test_metrics_endpoint(bench: Bench) -> None:
    await bench.chat()
    response = await bench.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    assert 'prfaas_requests_total{outcome="finished",reason="ok"} 1.0' in response.text


async def test_a_bug_is_a_logged_500_in_shape(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(fleet: FakeFleet, model: str) -> int:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(FakeFleet, "max_context_tokens", broken)
    response = await bench.chat()
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "secret detail" in caplog.text
    assert bench.metric("prfaas_requests_total", outcome="failed", reason="internal_error") == 1


@pytest.mark.parametrize("path", ["/", "/health", "/metrics"])
async def test_load_balancers_may_ask_for_the_head_alone(bench: Bench, path: str) -> None:
    assert (await bench.client.head(path)).status_code == 200
    assert (await bench.client.head("/v1/chat/completions")).status_code == 405
