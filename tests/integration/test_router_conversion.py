"""A node changes its role while requests run: real processes with emulated engines, and no request notices."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.served import Served
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]
# Long prompts, short answers, and three of four PD nodes that decode: most of the site waits for one prefill node.
SETTINGS: dict[str, Any] = {
    "sites": [
        {"name": "prefill-dc", "pools": [{"role": "prefill"}]},
        {"name": "pd-dc", "pools": [{"role": "pd_prefill"}, {"role": "decode", "count": 3}]},
    ],
    "engine": {"time_scale": 0.3, "block_tokens": 16},
    "router": {
        "policy": {
            "threshold_tokens": 400,
            "inline_tokens": 4,
            "replan_s": 0.5,
            "convert_interval_s": 3600.0,
            "convert_drain_s": 20.0,
        }
    },
}
CLIENTS, PATIENCE_S = 12, 90.0
DONE = 'prfaas_node_conversions_total{outcome="done",role="pd_prefill"} 1.0'


async def client(http: httpx.AsyncClient, seed: int, stop: asyncio.Event, answers: Counter[str]) -> None:
    """Sends one prompt after the other, each new, and counts how they end."""
    rng = random.Random(seed)
    while not stop.is_set():
        prompt = [rng.randrange(3, 250) for _ in range(rng.randrange(50, 800))]
        body = {"model": "m", "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "temperature": 0}
        answer = await http.post("/v1/completions", json=body)
        whole = answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 8
        answers["ok" if whole else answer.text] += 1


def status(url: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "prfaas.cli", "status", "--url", url, "--json"]
    document = json.loads(subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout)
    assert isinstance(document, dict)
    return document


async def until_converted(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while DONE not in (await http.get("/metrics")).text:  # noqa: ASYNC110 - it happens in other processes
            await asyncio.sleep(0.2)


async def test_a_node_that_plans_want_elsewhere_changes_its_role_and_no_request_fails(tmp_path: Path) -> None:
    file = tmp_path / "deployment.json"
    file.write_text(json.dumps(SETTINGS))
    served = Served(tmp_path, "--pool", "process", file=file)
    try:
        await asyncio.to_thread(served.wait_ready)
        stop, answers = asyncio.Event(), Counter[str]()
        async with httpx.AsyncClient(base_url=served.url, timeout=60, trust_env=False) as http, asyncio.TaskGroup() as tasks:
            for seed in range(CLIENTS):
                tasks.create_task(client(http, seed, stop, answers))
            await until_converted(http)
            before = answers["ok"]
            await until(lambda: answers["ok"] >= before + 50, PATIENCE_S)
            document = await asyncio.to_thread(status, served.url)
            stop.set()
        assert set(answers) == {"ok"}
        assert document["workers"] == {"prefill:healthy": 1, "pd_prefill:healthy": 2, "decode:healthy": 2}
        rows = {w["id"]: (w["role"], w["becomes"], w["device"]) for site in document["sites"] for w in site["workers"]}
        assert len(rows) == 5
        assert set(rows.values()) == {(role, None, "emulated") for role in ("prefill", "pd_prefill", "decode")}
    finally:
        await asyncio.to_thread(served.close)
