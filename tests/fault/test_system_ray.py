"""Two Ray clusters on one machine are two datacenters, joined only by the router's address and gRPC; a killed worker
gives the client its answer all the same, and its own Ray brings it back."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from pathlib import Path

import httpx
import pytest

from tests.support.models import tiny_model
from tests.support.ray_sites import DriverPool, ray_cluster
from tests.support.system import System, wait_until

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

pytestmark = [pytest.mark.ray, pytest.mark.fault, pytest.mark.e2e, pytest.mark.torch, pytest.mark.timeout(300)]

PROMPT = [(i * 7919) % 450 + 20 for i in range(12_000)]


def _ask(system: System, prompt: list[int]) -> httpx.Response:
    body = {"model": "test-model", "prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{system.url}/v1/completions", json=body, timeout=120)


def test_two_ray_clusters_serve_and_survive_a_kill(tmp_path: Path) -> None:
    with ray_cluster("prefill-dc", tmp_path) as far, ray_cluster("pd-dc", tmp_path) as near:
        pools = {"prefill-dc": DriverPool(far, tmp_path / "far"), "pd-dc": DriverPool(near, tmp_path / "near")}
        engine = {"num_threads": 1, "max_step_tokens": 128}
        with System(tiny_model("tiny-kimi-linear"), tmp_path, dict(pools), engine=engine) as system:
            calm = _ask(system, PROMPT[:2000])
            assert calm.status_code == 200, calm.text
            assert calm.headers["x-prfaas-route"].startswith("remote")

            prefill = system.worker("prefill")
            wait_until("the pool to know the worker's process", lambda: system.pid(prefill) is not None)
            first_pid = system.pid(prefill)
            assert first_pid is not None
            answers: list[httpx.Response] = []
            call = threading.Thread(target=lambda: answers.append(_ask(system, PROMPT)))
            call.start()

            def busy() -> bool:
                return system.counters(prefill).get("sequences_running", 0) > 0

            wait_until("the transfer to be under way", busy, timeout_s=20)
            os.kill(first_pid, signal.SIGKILL)
            call.join(150)
            assert answers
            assert answers[0].status_code == 200, answers[0].text
            assert system.metric("prfaas_fallback_total") >= 1

            def back() -> bool:
                return system.pid(prefill) not in (None, first_pid) and system.try_status(prefill) is not None

            wait_until("Ray to bring the worker back", back, timeout_s=90)
            system.wait_ready()
            for worker in system.workers:
                system.assert_nothing_leaked(worker)
            again = _ask(system, PROMPT)
            assert again.json()["choices"][0]["text"] == answers[0].json()["choices"][0]["text"]
