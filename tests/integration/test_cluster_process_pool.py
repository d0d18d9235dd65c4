"""The process pool against real processes: restarts, polite and firm ends, and what survives a killed parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.cluster.backoff import Backoff
from prfaas.cluster.process_pool import ProcessPool
from prfaas.errors import StartupError
from tests.support.pools import TRIVIAL_WORKER, eventually, order, runs, starts_of

COMMAND = (sys.executable, str(TRIVIAL_WORKER))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[ProcessPool]:
    made = ProcessPool(log_dir=tmp_path / "logs", command=COMMAND, backoff=Backoff(base_s=0.05))
    yield made
    made.close(drain_s=0)


def test_runs_each_worker_with_its_settings_and_its_own_log(pool: ProcessPool, tmp_path: Path) -> None:
    pool.start([order("a", tmp_path / "a"), order("b", tmp_path / "b")])
    eventually(lambda: bool(starts_of(tmp_path / "a") and starts_of(tmp_path / "b")), "both workers started")
    members = {m.worker_id: m for m in pool.members()}
    assert {name: m.pid for name, m in members.items()} == {n: starts_of(tmp_path / n)[0][0] for n in ("a", "b")}
    assert all(m.alive and m.restarts == 0 for m in members.values())
    assert (tmp_path / "logs" / "a.log").read_text() == "hello from a\n"


def test_a_killed_worker_comes_back(pool: ProcessPool, tmp_path: Path) -> None:
    starts = tmp_path / "a"
    pool.start([order("a", starts)])
    eventually(lambda: len(starts_of(starts)) == 1, "the worker started")
    os.kill(starts_of(starts)[0][0], signal.SIGKILL)
    eventually(lambda: len(starts_of(starts)) == 2, "the worker was started again")
    (member,) = pool.members()
    assert (member.pid, member.alive, member.restarts) == (starts_of(starts)[1][0], True, 1)


def test_a_worker_that_keeps_failing_is_tried_ever_more_slowly(tmp_path: Path) -> None:
    pool = ProcessPool(log_dir=tmp_path / "logs", command=COMMAND, backoff=Backoff(base_s=0.01, cap_s=60))
    try:
        pool.start([order("a", tmp_path / "a", "crash")])
        eventually(lambda: pool.members()[0].restarts >= 3, "three restarts happened")
        assert "told to crash" in (tmp_path / "logs" / "a.log").read_text()
    finally:
        began_s = time.monotonic()
        pool.close(drain_s=30)
    assert time.monotonic() - began_s < 5, "closing waits for no back-off"


def test_a_worker_takes_what_it_started_with_it(pool: ProcessPool, tmp_path: Path) -> None:
    starts = tmp_path / "a"
    pool.start([order("a", starts, "family")])
    eventually(lambda: bool(starts_of(starts)), "the worker started")
    worker, grandchild = starts_of(starts)[0]
    assert runs(grandchild)
    pool.close()
    assert not runs(worker)
    eventually(lambda: not runs(grandchild), "the grandchild ended")


def test_a_stubborn_worker_is_ended_when_its_time_is_up(pool: ProcessPool, tmp_path: Path) -> None:
    starts = tmp_path / "a"
    pool.start([order("a", starts, "stubborn")])
    eventually(lambda: bool(starts_of(starts)), "the worker started")
    began_s = time.monotonic()
    pool.close(drain_s=0.3)
    assert 0.3 <= time.monotonic() - began_s < 5
    assert not runs(starts_of(starts)[0][0])


def test_a_second_close_hurries_the_first(pool: ProcessPool, tmp_path: Path) -> None:
    starts = tmp_path / "a"
    pool.start([order("a", starts, "stubborn")])
    eventually(lambda: bool(starts_of(starts)), "the worker started")
    slow = threading.Thread(target=lambda: pool.close(drain_s=60))
    slow.start()
    pool.close(drain_s=0)
    slow.join(5)
    assert not slow.is_alive()
    assert not runs(starts_of(starts)[0][0])


def test_stopping_one_worker_leaves_the_others(pool: ProcessPool, tmp_path: Path) -> None:
    pool.start([order("a", tmp_path / "a"), order("b", tmp_path / "b")])
    eventually(lambda: bool(starts_of(tmp_path / "a") and starts_of(tmp_path / "b")), "both workers started")
    pool.stop_worker("a", drain_s=5)
    assert not runs(starts_of(tmp_path / "a")[0][0])
    assert [m.worker_id for m in pool.members()] == ["b"]
    assert runs(starts_of(tmp_path / "b")[0][0])
    with pytest.raises(KeyError):
        pool.stop_worker("a", drain_s=0)


def test_refuses_the_same_worker_twice_and_any_worker_once_closed(pool: ProcessPool, tmp_path: Path) -> None:
    pool.start([order("a", tmp_path / "a")])
    with pytest.raises(StartupError, match="already running"):
        pool.start([order("a", tmp_path / "a")])
    pool.close()
    pool.close()
    with pytest.raises(StartupError, match="closed"):
        pool.start([order("b", tmp_path / "b")])


def test_a_program_that_does_not_exist_is_a_startup_error(tmp_path: Path) -> None:
    pool = ProcessPool(command=(str(tmp_path / "nothing"),))
    try:
        with pytest.raises(StartupError, match="cannot start"):
            pool.start([order("a", tmp_path / "a")])
    finally:
        pool.close()


@pytest.mark.fault
def test_no_worker_and_no_file_survives_a_parent_killed_with_sigkill(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(Path.cwd())!r})
        from pathlib import Path
        from prfaas.cluster.process_pool import ProcessPool
        from tests.support.pools import order
        pool = ProcessPool(command={COMMAND!r})
        pool.start([order("a", Path({str(tmp_path / "a")!r}), "family"), order("b", Path({str(tmp_path / "b")!r}), "stubborn")])
        time.sleep(600)
    """)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "TMPDIR": str(scratch)})
    eventually(lambda: bool(starts_of(tmp_path / "a") and starts_of(tmp_path / "b")), "both workers started")
    assert list(scratch.glob("prfaas-workers-*/*.json"))
    pids = [*starts_of(tmp_path / "a")[0], *starts_of(tmp_path / "b")[0]]
    assert all(runs(pid) for pid in pids)
    parent.kill()
    parent.wait()
    eventually(lambda: not any(runs(pid) for pid in pids), "every worker ended with its parent")
    eventually(lambda: not list(scratch.glob("prfaas-workers-*")), "the workers' settings were removed")
