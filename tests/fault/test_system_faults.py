"""Processes die and clients leave in mid-request: the answer is still right, nothing leaks, a counter moves."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from prfaas.cluster.process_pool import ProcessPool
from tests.support.models import tiny_model
from tests.support.system import System, wait_until

pytestmark = [pytest.mark.fault, pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(240)]

LONG_PROMPT = [(i * 7919) % 450 + 20 for i in range(12_000)]


def _body(prompt: list[int], **changes: object) -> dict[str, object]:
    return {"model": "test-model", "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": True, **changes}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    pools = {"prefill-dc": ProcessPool(log_dir=tmp_path), "pd-dc": ProcessPool(log_dir=tmp_path)}
    engine = {"num_threads": 1, "max_step_tokens": 128}
    with System(tiny_model("tiny-kimi-linear"), tmp_path, dict(pools), engine=engine) as running:
        yield running


def _busy_with_transfer(system: System) -> bool:
    counters = system.counters(system.worker("prefill"))
    return counters.get("sequences_running", 0) + counters.get("active_transfers", 0) > 0


def test_killed_prefill_worker_in_mid_transfer_still_gives_the_answer(system: System) -> None:
    expected = httpx.post(f"{system.url}/v1/completions", json=_body(LONG_PROMPT[:11_999], max_tokens=1), timeout=120)
    assert expected.status_code == 200
    answers: list[httpx.Response] = []
    shifted = LONG_PROMPT[1:] + LONG_PROMPT[:1]
    call = threading.Thread(
        target=lambda: answers.append(httpx.post(f"{system.url}/v1/completions", json=_body(shifted), timeout=120))
    )
    call.start()
    prefill = system.worker("prefill")
    wait_until("the transfer to be under way", lambda: _busy_with_transfer(system), timeout_s=20)
    first_pid = system.pid(prefill)
    assert first_pid is not None
    os.kill(first_pid, signal.SIGKILL)
    call.join(120)
    assert answers, "the client got no answer"
    assert answers[0].status_code == 200, answers[0].text
    assert system.metric("prfaas_fallback_total") >= 1

    def is_back() -> bool:
        return system.pid(prefill) not in (None, first_pid) and system.try_status(prefill) is not None

    wait_until("the worker to come back", is_back, timeout_s=60)
    for worker in system.workers:
        system.assert_nothing_leaked(worker)
    # The same prompt again, prefilled elsewhere or found in a cache, says the same.
    again = httpx.post(f"{system.url}/v1/completions", json=_body(shifted), timeout=120)
    assert again.json()["choices"][0]["text"] == answers[0].json()["choices"][0]["text"]


def test_a_client_that_leaves_stops_prefill_and_decode_within_a_second(system: System) -> None:
    prefill, decode = system.worker("prefill"), system.worker("decode")

    def all_stopped() -> bool:
        return all(
            system.counters(w).get(name, 0.0) == 0.0
            for w in (prefill, decode)
            for name in ("sequences_running", "sequences_waiting", "landings", "exports_pinned")
        )

    # In prefill: the client leaves before the first token.
    with httpx.Client() as client:
        call = threading.Thread(target=lambda: _expect_timeout(client, f"{system.url}/v1/completions", _body(LONG_PROMPT[2:])))
        call.start()
        wait_until("prefill to be under way", lambda: _busy_with_transfer(system), timeout_s=20)
        call.join(20)
        left = time.monotonic()
        wait_until("prefill to stop", all_stopped, timeout_s=5, every_s=0.02)
        assert time.monotonic() - left < 1.0

    # In decode: the client reads some tokens of a stream and leaves.
    body = _body(LONG_PROMPT[3:2000], stream=True, max_tokens=20_000)
    with httpx.Client(timeout=60) as client, client.stream("POST", f"{system.url}/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        for _ in range(6):
            next(lines)
    left = time.monotonic()
    wait_until("decode to stop", all_stopped, timeout_s=5, every_s=0.02)
    assert time.monotonic() - left < 1.0
    for worker in system.workers:
        system.assert_nothing_leaked(worker)


def _expect_timeout(client: httpx.Client, url: str, body: dict[str, object]) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post(url, json=body, timeout=1.5)


def test_a_router_that_restarts_finds_its_workers_again(system: System) -> None:
    system.router.kill()
    system.router.wait()
    system.start_router()
    system.wait_ready()
    answer = httpx.post(f"{system.url}/v1/completions", json=_body(LONG_PROMPT[:2000]), timeout=60)
    assert answer.status_code == 200, answer.text
