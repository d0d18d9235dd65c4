"""The whole system over HTTP with the official `openai` client: routes by length, streaming, errors, metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from prfaas.cluster.process_pool import ProcessPool
from tests.support.models import tiny_model
from tests.support.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    log_dir = tmp_path_factory.mktemp("http")
    pools = {"prefill-dc": ProcessPool(log_dir=log_dir), "pd-dc": ProcessPool(log_dir=log_dir)}
    with System(tiny_model("tiny-kimi-linear"), log_dir, dict(pools), engine={"num_threads": 2}) as running:
        yield running


@pytest.fixture
def client(system: System) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{system.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize(("num_tokens", "route"), [(1, "inline"), (63, "inline"), (500, "local"), (3000, "remote")])
def test_the_length_decides_the_route(system: System, num_tokens: int, route: str) -> None:
    prompt = [(i * 7919 + num_tokens) % 450 + 20 for i in range(num_tokens)]
    body = {"model": "test-model", "prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    answer = httpx.post(f"{system.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-prfaas-route"].startswith(route)
    assert answer.json()["usage"] == {
        **answer.json()["usage"], "prompt_tokens": num_tokens, "completion_tokens": 4, "total_tokens": num_tokens + 4,
    }  # fmt: skip


def test_streaming_and_not_say_the_same(client: openai.OpenAI) -> None:
    messages: list[dict[str, str]] = [{"role": "user", "content": "tell me something about rivers " * 20}]
    whole = client.chat.completions.create(model="test-model", messages=messages, max_tokens=24, temperature=0)  # type: ignore[call-overload]
    stream = client.chat.completions.create(  # type: ignore[call-overload]
        model="test-model", messages=messages, max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    text, usage, reason = "", None, None
    for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert reason == whole.choices[0].finish_reason
    assert usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_second_turn_finds_the_first_in_the_cache(client: openai.OpenAI) -> None:
    messages: list[dict[str, str]] = [{"role": "user", "content": "count the stones of the old bridge, one by one. " * 12}]
    first = client.chat.completions.create(model="test-model", messages=messages, max_tokens=80, temperature=0)  # type: ignore[call-overload]
    messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "and now?"}]
    second = client.chat.completions.create(model="test-model", messages=messages, max_tokens=8, temperature=0)  # type: ignore[call-overload]
    assert second.usage.prompt_tokens_details.cached_tokens >= 64


@pytest.mark.parametrize(
    ("change", "status", "mentions"),
    [
        ({"model": "gpt-nothing"}, 404, "gpt-nothing"),
        ({"messages": []}, 400, "messages"),
        ({"max_tokens": -1}, 400, "max_tokens"),
        ({"messages": "hello"}, 400, "messages"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"messages": [{"role": "user", "content": "word " * 70_000}]}, 400, "tokens"),
    ],
)
def test_bad_input_says_what_to_change(system: System, change: dict[str, object], status: int, mentions: str) -> None:
    before = sum(system.counters(w).get("requests_total", 0.0) for w in system.workers)
    body = {"model": "test-model", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **change}
    answer = httpx.post(f"{system.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert mentions in error["message"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert sum(system.counters(w).get("requests_total", 0.0) for w in system.workers) == before


def test_invalid_json_is_a_400(system: System) -> None:
    answer = httpx.post(f"{system.url}/v1/chat/completions", content=b"{nope", headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]["message"]


def test_ttft_is_the_sum_of_its_stages(system: System, client: openai.OpenAI) -> None:
    client.completions.create(model="test-model", prompt="a long walk " * 400, max_tokens=4, temperature=0)
    total = system.metric("prfaas_ttft_seconds_sum")
    stages = system.metric("prfaas_ttft_stage_seconds_sum")
    assert total > 0
    assert stages == pytest.approx(total, rel=1e-6)
    assert system.metric("prfaas_kv_bytes_total", route="remote") > 0


def test_a_report_explains_the_route(system: System) -> None:
    body = {
        "model": "test-model", "prompt": "why is the route what it is? " * 300, "max_tokens": 4, "temperature": 0,
        "prfaas_report": True,
    }  # fmt: skip
    answer = httpx.post(f"{system.url}/v1/completions", json=body, timeout=60).json()
    report = answer["prfaas"]
    assert report["route"] == "remote"
    assert report["kv_bytes"] > 0
    assert report["reasons"]
    assert json.dumps(report)
