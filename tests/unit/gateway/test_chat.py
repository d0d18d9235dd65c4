"""POST /v1/chat/completions: every field reaches the request or the answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

from prfaas.errors import EngineFailed, NoWorkerAvailable, QueueFull, WorkerUnreachable
from prfaas.types import Route, SamplingParams
from tests.support.fake_pipeline import DECISION, REPORT, Script, logprob_of
from tests.unit.gateway.conftest import Bench

ANSWER = "Paris is the capital of France."


def events(body: str) -> list[dict[str, Any]]:
    """The JSON of every data event but the last, which must be [DONE]."""
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_document(bench: Bench) -> None:
    response = await bench.chat()
    body = response.json()
    assert response.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    request = bench.pipeline.requests[0]
    assert body["usage"]["prompt_tokens"] == len(request.tokens)
    assert body["usage"]["completion_tokens"] == len(bench.text.encode(ANSWER, add_special_tokens=False)) + 1
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": REPORT.cached_tokens}
    assert "prfaas" not in body
    prompt = bench.text.decode(request.tokens, keep_special=True)
    assert prompt == "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


async def test_stream_says_what_the_document_says(bench: Bench) -> None:
    response = await bench.chat(stream=True)
    chunks = events(response.text)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    assert not any("usage" in chunk for chunk in chunks)


FIELDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"temperature": 0}, {"temperature": 0}),
    ({}, {"temperature": 1.0, "top_p": 1.0, "max_tokens": 64, "n": 1, "logprobs": None}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": -1}, {"top_k": 0}),
    ({"min_p": 0.25}, {"min_p": 0.25}),
    ({"seed": -1}, {"seed": 2**64 - 1}),
    ({"frequency_penalty": 0.5, "presence_penalty": -0.5}, {"frequency_penalty": 0.5, "presence_penalty": -0.5}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"logit_bias": {"17": -5}}, {"logit_bias": ((17, -5.0),)}),
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"max_tokens": 5, "max_completion_tokens": 6}, {"max_tokens": 6}),
    ({"min_tokens": 2, "max_tokens": 5}, {"min_tokens": 2}),
    ({"stop_token_ids": [300, 301]}, {"stop_token_ids": (300, 301)}),
    ({"ignore_eos": True}, {"ignore_eos": True}),
    ({"n": 3}, {"n": 3}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 4}, {"logprobs": 4}),
]


@pytest.mark.parametrize(("fields", "sampling"), FIELDS, ids=lambda value: ",".join(value) if isinstance(value, dict) else None)
async def test_sampling_fields_arrive(bench: Bench, fields: dict[str, Any], sampling: dict[str, Any]) -> None:
    assert (await bench.chat(**fields)).status_code == 200
    sent = bench.pipeline.requests[0].sampling
    assert isinstance(sent, SamplingParams)
    assert replace(sent, **sampling) == sent


async def test_request_fields_arrive(bench: Bench) -> None:
    trace = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    body = {"model": "test-model", "messages": [{"role": "user", "content": "x"}]}
    fields = {"user": "anna", "cache_salt": "s", "priority": -3}
    await bench.client.post("/v1/chat/completions", json={**body, **fields}, headers={"traceparent": trace})
    sent = bench.pipeline.requests[0]
    assert (sent.tenant, sent.cache_salt, sent.priority, sent.trace_parent) == ("anna", "s", -3, trace)
    assert sent.deadline_s is not None
    assert 599 < sent.deadline_s <= 600


async def test_seeds_are_drawn_afresh(bench: Bench) -> None:
    for _ in range(3):
        await bench.chat()
    assert len({request.sampling.seed for request in bench.pipeline.requests}) == 3


async def test_messages_of_all_roles_reach_the_template(bench: Bench) -> None:
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": [{"type": "text", "text": "U1"}, {"type": "text", "text": "U2"}]},
        {"role": "assistant", "content": "A", "refusal": None, "annotations": [], "audio": None, "function_call": None},
        {"role": "system", "content": "S"},
    ]
    assert (await bench.chat(messages=messages)).status_code == 200
    prompt = bench.text.decode(bench.pipeline.requests[0].tokens)
    assert prompt.split() == ["system", "D", "user", "U1U2", "assistant", "A", "system", "S", "assistant"]


async def test_stop_strings_end_the_sample_and_close_the_pipeline(bench: Bench) -> None:
    response = await bench.chat(stop=["capital"])
    choice = response.json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Paris is the ", "stop")
    assert bench.pipeline.ended == ["closed"]


async def test_one_sample_may_stop_before_another(bench: Bench) -> None:
    bench.pipeline.script = Script(replies=("one STOP and more text", "two is longer than one is"))
    choices = (await bench.chat(n=2, stop=" STOP")).json()["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["one", "two is longer than one is"]


async def test_length(bench: Bench) -> None:
    choice = (await bench.chat(max_tokens=2)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Paris is", "length")


async def test_logprobs_are_the_same_streamed_and_whole(bench: Bench) -> None:
    whole = (await bench.chat(logprobs=True, top_logprobs=2, n=2)).json()
    chunks = events((await bench.chat(logprobs=True, top_logprobs=2, n=2, stream=True)).text)
    for index in (0, 1):
        streamed = [
            entry
            for chunk in chunks
            for choice in chunk["choices"]
            if choice["index"] == index and choice["logprobs"]
            for entry in choice["logprobs"]["content"]
        ]
        assert json.dumps(streamed) == json.dumps(whole["choices"][index]["logprobs"]["content"])
    first = whole["choices"][0]["logprobs"]["content"][0]
    token = bench.text.encode("Paris", add_special_tokens=False)[0]
    assert (first["token"], first["logprob"], bytes(first["bytes"])) == ("Paris", logprob_of(token), b"Paris")
    assert len(first["top_logprobs"]) == 2


async def test_report_and_route_header(bench: Bench) -> None:
    by_field = await bench.chat(prfaas_report=True)
    body = {"model": "test-model", "messages": [{"role": "user", "content": "x"}]}
    by_header = await bench.client.post("/v1/chat/completions", json=body, headers={"x-prfaas-report": "1"})
    for response in (by_field, by_header):
        report = response.json()["prfaas"]
        assert report["route"] == "remote"
        assert report["worker"] == "prefill-0"
        assert report["reasons"] == list(DECISION.reasons)
        assert (report["kv_bytes"], report["attempts"]) == (REPORT.kv_bytes, list(REPORT.attempts))
        assert sum(report["stages"].values()) == pytest.approx(report["ttft_s"])
        header = response.headers["x-prfaas-route"]
        assert header.startswith("remote; reason=\"4000 uncached tokens > threshold 2048, 'far' is idle\"")
        assert header.endswith("uncached_tokens=4000; threshold_tokens=2048")
    streamed = events((await bench.chat(prfaas_report=True, stream=True)).text)
    assert streamed[-1]["prfaas"]["route"] == "remote"


async def test_the_report_tells_the_route_taken_not_the_one_planned(bench: Bench) -> None:
    bench.pipeline.script = Script(report=replace(REPORT, route=Route.INLINE))
    assert (await bench.chat(prfaas_report=True)).json()["prfaas"]["route"] == "inline"
    assert bench.metric("prfaas_ttft_seconds_count", route="inline") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_the_route_header_names_the_route_taken_and_the_one_decided_where_they_differ(bench: Bench, stream: bool) -> None:
    bench.pipeline.script = Script(report=replace(REPORT, route=Route.INLINE))
    for response in (await bench.chat(stream=stream), await bench.complete(stream=stream)):
        assert response.headers["x-prfaas-route"].startswith("inline; decided=remote; reason=")


@pytest.mark.parametrize("extra", [{}, {"logprobs": True}, {"stream_options": {"include_usage": True}}])
async def test_tokens_that_come_together_are_the_same_events(bench: Bench, extra: dict[str, Any]) -> None:
    def without_ids(response: httpx.Response) -> list[Any]:
        return [{**event, "id": "", "created": 0} for event in events(response.text)]

    apart = without_ids(await bench.chat(stream=True, **extra))
    bench.pipeline.script = Script(together=3)
    assert without_ids(await bench.chat(stream=True, **extra)) == apart


async def test_metrics_of_a_finished_request(bench: Bench) -> None:
    usage = (await bench.chat()).json()["usage"]
    assert bench.metric("prfaas_requests_total", outcome="finished", reason="ok") == 1
    assert bench.metric("prfaas_requests_active") == 0
    assert bench.metric("prfaas_prompt_tokens_total") == usage["prompt_tokens"]
    assert bench.metric("prfaas_cached_tokens_total") == usage["prompt_tokens_details"]["cached_tokens"]
    assert bench.metric("prfaas_generation_tokens_total") == usage["completion_tokens"]
    assert bench.metric("prfaas_inter_token_latency_seconds_count") == usage["completion_tokens"] - 1
    stages = ("tokenize", "decide", "queue", "prefill", "wire", "commit", "decode_first")
    total = sum(bench.metric("prfaas_ttft_stage_seconds_sum", stage=stage) for stage in stages)
    assert total == pytest.approx(bench.metric("prfaas_ttft_seconds_sum", route="remote"))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["decide", "prefill", "token:0"])
async def test_errors_before_the_first_token_have_a_status(bench: Bench, stream: bool, stage: str) -> None:
    bench.pipeline.script = Script(fail_at=stage, error=NoWorkerAvailable("no decode worker", retry_after_s=4.0))
    response = await bench.chat(stream=stream)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "4"
    assert response.json()["error"]["code"] == "no_worker_available"
    assert bench.metric("prfaas_requests_total", outcome="rejected", reason="no_worker_available") == 1


async def test_errors_after_the_first_token_end_the_stream(bench: Bench) -> None:
    bench.pipeline.script = Script(fail_at="token:3", error=WorkerUnreachable("decode-0 is gone"))
    response = await bench.chat(stream=True)
    assert response.status_code == 200
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["code"] == "worker_unreachable"
    assert "[DONE]" not in response.text
    assert bench.metric("prfaas_requests_total", outcome="failed", reason="worker_unreachable") == 1


async def test_server_faults_count_as_failed(bench: Bench) -> None:
    bench.pipeline.script = Script(fail_at="prefill", error=EngineFailed("step died"))
    response = await bench.chat()
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert bench.metric("prfaas_requests_total", outcome="failed", reason="engine_failed") == 1


async def test_busy(bench: Bench) -> None:
    bench.pipeline.script = Script(fail_at="decide", error=QueueFull("full", retry_after_s=0.2))
    response = await bench.chat()
    assert (response.status_code, response.headers["retry-after"]) == (429, "1")
    assert response.json()["error"]["type"] == "rate_limit_error"


class TestKeepAlive:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"limits": {"sse_keepalive_s": 0.02}}

    async def test_long_prefills_are_bridged_by_comments(self, bench: Bench) -> None:
        bench.pipeline.script = Script(prefill_delay_s=0.15)
        response = await bench.chat(stream=True)
        assert response.text.startswith(": keep-alive\n\n")
        assert response.text.count(": keep-alive") <= 8
        assert "".join(c["choices"][0]["delta"].get("content", "") for c in events(response.text)) == ANSWER

    async def test_none_when_events_flow(self, bench: Bench) -> None:
        bench.pipeline.script = Script(token_delay_s=0.002)
        assert "keep-alive" not in (await bench.chat(stream=True)).text

    async def test_an_error_after_a_comment_is_an_event(self, bench: Bench) -> None:
        bench.pipeline.script = Script(prefill_delay_s=0.08, fail_at="token:0", error=EngineFailed("died"))
        response = await bench.chat(stream=True)
        assert response.status_code == 200
        assert "engine_failed" in response.text

    async def test_headers_that_a_keep_alive_took_along_name_the_decided_route(self, bench: Bench) -> None:
        bench.pipeline.script = Script(report=replace(REPORT, route=Route.INLINE), prefill_delay_s=0.2)
        response = await bench.chat(stream=True)
        assert response.headers["x-prfaas-route"].startswith("remote; reason=")
        assert response.text.startswith(": keep-alive")


class TestDeadline:
    @pytest.fixture
    def router_settings(self) -> dict[str, Any]:
        return {"limits": {"request_timeout_s": 0.05}}

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_pipeline_that_hangs_is_given_up(self, bench: Bench, stream: bool) -> None:
        bench.pipeline.script = Script(prefill_delay_s=30)
        response = await bench.chat(stream=stream)
        assert response.status_code == 504
        assert response.json()["error"]["code"] == "deadline_exceeded"
        assert bench.metric("prfaas_requests_total", outcome="failed", reason="deadline_exceeded") == 1
        assert bench.pipeline.ended == ["closed"]


async def test_concurrent_requests_do_not_mix(bench: Bench) -> None:
    bench.pipeline.script = Script(token_delay_s=0.001)
    responses = await asyncio.gather(*(bench.chat(max_tokens=at + 1) for at in range(8)))
    counts = [response.json()["usage"]["completion_tokens"] for response in responses]
    assert counts == list(range(1, 9))
