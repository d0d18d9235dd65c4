"""`prfaas serve` from the outside: it answers, mends what dies, and ends with nothing left, however it is ended."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.pools import eventually
from tests.support.served import Served

pytestmark = pytest.mark.e2e
WORKERS = {"prefill-dc-prefill-0", "pd-dc-pd-prefill-0", "pd-dc-decode-0"}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    system = Served(tmp_path, "--pool", "process", "--threshold", "64", "--inline", "4")
    try:
        system.wait_ready()
        yield system
    finally:
        system.close()


def status(url: str) -> tuple[int, dict[str, object]]:
    command = [sys.executable, "-m", "prfaas.cli", "status", "--url", url, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stdout)


def test_serves_over_every_route_tells_its_state_and_ends_cleanly_on_ctrl_c(served: Served) -> None:
    long, short = served.ask("word " * 100), served.ask("hello there my friend")
    assert [answer.status_code for answer in (long, short)] == [200, 200], long.text + short.text
    assert [answer.headers["x-prfaas-route"].split(";")[0] for answer in (long, short)] == ["remote", "local"]
    code, document = status(served.url)
    assert code == 0
    assert (document["model"], document["ready"]) == ("m", True)
    assert set(served.members()) == WORKERS
    said = [line for line in served.lines if "registered" in line]
    assert len(said) >= len(WORKERS)

    served.remember()
    served.interrupt()
    assert served.wait_ended(30) == 0
    assert served.left() == set()
    assert served.lines[-1].endswith("stopped")
    assert status(served.url) == (1, {"url": served.url, "reachable": False})


@pytest.mark.fault
def test_a_killed_worker_and_a_killed_router_come_back(served: Served) -> None:
    worker = served.members()["pd-dc-decode-0"]
    os.kill(worker["pid"], signal.SIGKILL)
    eventually(lambda: served.members()["pd-dc-decode-0"]["restarts"] == 1, "the worker was started again", 30)
    eventually(lambda: served.ask().status_code == 200, "requests are answered again", 60)

    os.kill(served.driver_pids()["router"], signal.SIGKILL)
    eventually(lambda: served.healthy_workers() == len(WORKERS), "every worker found the new router", 60)
    assert served.ask().status_code == 200


@pytest.mark.fault
def test_a_second_ctrl_c_does_not_wait_for_a_long_answer(served: Served) -> None:
    outcome: list[object] = []

    def ask() -> None:
        try:
            outcome.append(served.ask("go on", max_tokens=4000, ignore_eos=True).status_code)
        except httpx.HTTPError as error:
            outcome.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: status(served.url)[1]["in_flight"] == 1, "the long request is under way")
    served.remember()
    served.interrupt()
    eventually(lambda: any("stopping" in line for line in served.lines), "it said that it stops")
    time.sleep(0.5)
    assert served.process.poll() is None, "the first Ctrl-C lets the request go on"
    assert not outcome
    began_s = time.monotonic()
    served.interrupt()
    assert served.wait_ended(20) == 0
    assert time.monotonic() - began_s < 12
    assert served.left() == set()
    asking.join(10)
    assert outcome
    assert outcome != [200]


@pytest.mark.fault
def test_nothing_outlives_a_serve_killed_with_sigkill(served: Served) -> None:
    served.remember()
    assert len(served.left()) >= 2 + len(WORKERS)
    served.process.kill()
    served.process.wait()
    eventually(lambda: not served.left(), "everything it started ended with it", 20)


def test_a_taken_port_is_said_at_once_and_nothing_is_started(served: Served, tmp_path: Path) -> None:
    port = served.url.rsplit(":", 1)[1]
    (tmp_path / "second").mkdir()
    second = Served(tmp_path / "second", "--pool", "process", "--port", port)
    assert second.wait_ended(30) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in "\n".join(second.lines)
    assert served.ask().status_code == 200


def test_a_worker_that_cannot_start_ends_the_command_with_the_end_of_its_log(tmp_path: Path) -> None:
    system = Served(tmp_path, "--pool", "process", "--prefill", "0", "--pd-prefill", "0", "--emulate", str(tmp_path / "absent"))
    try:
        assert system.wait_ended(60) == 1
        said = "\n".join(system.lines)
        assert "pd-dc-decode-0 cannot start" in said
        assert "absent" in said
        assert "Traceback" not in said
    finally:
        system.close()


@pytest.mark.ray
@pytest.mark.fault
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_on_ray_a_killed_worker_comes_back_and_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    system = Served(tmp_path, "--pool", "ray", "--threshold", "64", "--inline", "4")
    try:
        system.wait_ready()
        assert system.ask("word " * 100).headers["x-prfaas-route"].startswith("remote")
        eventually(lambda: set(system.members()) == WORKERS, "the driver published its workers")
        os.kill(system.members()["prefill-dc-prefill-0"]["pid"], signal.SIGKILL)
        eventually(lambda: system.members()["prefill-dc-prefill-0"]["restarts"] == 1, "Ray started the worker again", 60)
        eventually(lambda: system.healthy_workers() == len(WORKERS), "it registered again", 60)
        answer = system.ask("word " * 101)
        assert (answer.status_code, answer.headers["x-prfaas-route"][:6]) == (200, "remote")

        system.remember()
        system.interrupt()
        assert system.wait_ended(60) == 0
        eventually(lambda: not system.left(), "every process of Ray ended", 20)
    finally:
        system.close()
