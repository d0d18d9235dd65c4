"""Two datacenters that share nothing but TCP: a router and two `prfaas up`, each started by hand; and `prfaas chat`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from prfaas.cli.ports import free_port
from tests.support.emulated_hybrid import write_profile
from tests.support.pools import eventually, runs
from tests.support.served import descendants, write_served_model

pytestmark = pytest.mark.e2e
PRFAAS = (sys.executable, "-m", "prfaas.cli")


@contextmanager
def running(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen([*PRFAAS, *arguments], stdout=out, stderr=out, process_group=0)
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(30) == 0, log.read_text()
            eventually(lambda: not any(runs(pid) for pid in family), "everything ended with its command")
        finally:
            process.kill()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A router and two sites, each from its own file."""
    model, profile = write_served_model(tmp_path), write_profile(tmp_path / "profile.json", vocab_size=512)
    http, grpc = free_port("127.0.0.1"), free_port("127.0.0.1")
    policy = {"threshold_tokens": 64, "inline_tokens": 4}
    router = {"model": str(model), "served_model_name": "m", "port": http, "grpc_port": grpc, "policy": policy}
    site = {
        "model": str(model),
        "served_model_name": "m",
        "pool": "process",
        "engine": {"kind": "emulated", "profile": str(profile)},
    }
    far = {**site, "sites": [{"name": "far", "pools": [{"role": "prefill"}]}]}
    near = {**site, "sites": [{"name": "near", "pools": [{"role": "pd_prefill"}, {"role": "decode"}]}]}
    for name, document in (("router", router), ("far", far), ("near", near)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document))
    with ExitStack() as stack:
        stack.enter_context(running("route", "--settings", str(tmp_path / "router.yaml"), log=tmp_path / "router.log"))
        for name in ("far", "near"):
            arguments = ("up", "--site", str(tmp_path / f"{name}.yaml"), "--router", f"127.0.0.1:{grpc}", "--name", name)
            stack.enter_context(running(*arguments, log=tmp_path / f"{name}.log"))
        address = f"http://127.0.0.1:{http}"

        def ready() -> bool:
            try:
                workers = httpx.get(f"{address}/health", timeout=5, trust_env=False).json()["workers"]
            except httpx.HTTPError:
                return False
            return set(workers) == {"prefill:healthy", "pd_prefill:healthy", "decode:healthy"}

        eventually(ready, "every worker registered", 90)
        yield address


def test_a_long_prompt_is_prefilled_in_the_other_datacenter(url: str) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "word " * 100}], "max_tokens": 4}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers={"x-prfaas-report": "1"}, timeout=60, trust_env=False)
    assert answer.status_code == 200, answer.text
    report = answer.json()["prfaas"]
    assert (report["route"], report["worker"], report["decode_worker"]) == ("remote", "far-prefill-0", "near-decode-0")
    assert report["kv_bytes"] > 0


def test_chat_talks_remembers_and_shows_facts(url: str) -> None:
    typed = "/help\nhello\n/facts\nand again\n/quit\n"
    done = subprocess.run(
        [*PRFAAS, "chat", "--url", url, "--max-tokens", "5", "--system", "be brief"],
        input=typed, capture_output=True, text=True, timeout=90, check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("m> ") == 2
    assert "/reset forgets" in done.stderr
    assert done.stderr.count("time to first token") == 1, "facts are shown once they were asked for"


def test_doctor_measures_the_link_to_a_prefill_worker(url: str, tmp_path: Path) -> None:
    address = (tmp_path / "far.log").read_text().split("far-prefill-0 at ")[1].split()[0]
    done = subprocess.run(
        [*PRFAAS, "doctor", "link", address, "--mb", "1", "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["worker_id"], report["site"], report["tls"]) == ("far-prefill-0", "far", False)
    assert [rate["lanes"] for rate in report["rates"]] == [1, 2, 4, 8, 16]
    assert all(rate["bytes_per_s"] > 0 for rate in report["rates"])
    assert abs(report["clock_skew_s"]) < 1, "it is the same clock"


def test_chat_with_nobody_says_so() -> None:
    done = subprocess.run(
        [*PRFAAS, "chat", "--url", "http://127.0.0.1:1"], input="", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "no prfaas router answers at http://127.0.0.1:1" in done.stderr
