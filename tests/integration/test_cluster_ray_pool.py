"""The Ray pool against a real local Ray: restarts after SIGKILL, polite and firm ends, nothing left behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from prfaas.errors import StartupError
from tests.support.pools import TRIVIAL_ENTRYPOINT, eventually, order, runs, starts_of

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)

from prfaas.cluster.ray_pool import RayPool

pytestmark = pytest.mark.ray


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[RayPool]:
    made = RayPool(log_dir=tmp_path / "logs", entrypoint=TRIVIAL_ENTRYPOINT)
    yield made
    made.close(drain_s=0)


def children_of(pid: int) -> set[int]:
    """All living descendants of a process."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


@pytest.mark.fault
def test_a_killed_worker_comes_back_and_nothing_is_left_after_close(pool: RayPool, tmp_path: Path) -> None:
    strangers = children_of(os.getpid())
    pool.start([order("p", tmp_path / "p", site="far"), order("d", tmp_path / "d", site="near")])
    eventually(lambda: all(m.alive for m in pool.members()), "both actors run", 60)
    eventually(lambda: bool(starts_of(tmp_path / "p") and starts_of(tmp_path / "d")), "both workers started", 60)
    assert {m.worker_id: m.pid for m in pool.members()} == {n: starts_of(tmp_path / n)[0][0] for n in ("p", "d")}

    os.kill(starts_of(tmp_path / "p")[0][0], signal.SIGKILL)
    eventually(lambda: len(starts_of(tmp_path / "p")) == 2, "Ray started the worker again", 60)
    eventually(lambda: all(m.alive for m in pool.members()), "both actors run again")
    assert {m.worker_id: m.restarts for m in pool.members()} == {"p": 1, "d": 0}

    pool.stop_worker("d", drain_s=5)
    eventually(lambda: not runs(starts_of(tmp_path / "d")[0][0]), "the stopped worker's process ended")
    assert [m.worker_id for m in pool.members()] == ["p"]

    everything = children_of(os.getpid()) - strangers
    assert len(everything) > 2
    pool.close()
    eventually(lambda: not any(runs(pid) for pid in everything), "every process of Ray ended")
    with pytest.raises(StartupError, match="closed"):
        pool.start([order("x", tmp_path / "x")])


def test_a_crashing_worker_is_started_again_and_a_stubborn_one_is_ended(pool: RayPool, tmp_path: Path) -> None:
    pool.start([order("c", tmp_path / "c", "crash"), order("s", tmp_path / "s", "stubborn")])
    eventually(lambda: len(starts_of(tmp_path / "c")) >= 2, "the crashing worker was started again", 60)
    eventually(lambda: bool(starts_of(tmp_path / "s")), "the stubborn worker started", 60)
    assert "told to crash" in (tmp_path / "logs" / "c.log").read_text()
    pool.close(drain_s=0.2)
    eventually(lambda: not runs(starts_of(tmp_path / "s")[0][0]), "the stubborn worker ended")


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:10001", "give HOST:PORT of its head"),
        ("head", "give HOST:PORT of its head"),
    ],
)
def test_an_address_without_ray_is_refused_at_once(address: str, complaint: str) -> None:
    pool = RayPool(address=address)
    with pytest.raises(StartupError, match=complaint):
        pool.start([])
    pool.close()


@pytest.mark.fault
def test_nothing_survives_a_driver_killed_with_sigkill(tmp_path: Path) -> None:
    program = textwrap.dedent(f"""
        import time
        from pathlib import Path
        from prfaas.cluster.ray_pool import RayPool
        from tests.support.pools import TRIVIAL_ENTRYPOINT, order
        pool = RayPool(entrypoint=TRIVIAL_ENTRYPOINT)
        pool.start([order("a", Path({str(tmp_path / "a")!r}))])
        time.sleep(600)
    """)
    driver = subprocess.Popen([sys.executable, "-c", program], cwd=Path.cwd(), process_group=0)
    eventually(lambda: bool(starts_of(tmp_path / "a")), "the worker started", 60)
    everything = children_of(driver.pid)
    driver.kill()
    driver.wait()
    eventually(lambda: not any(runs(pid) for pid in everything), "every process ended with its driver", 30)
