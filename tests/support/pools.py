"""Helpers for tests of worker pools: orders for the trivial worker, and waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from prfaas.cluster.api import WorkerOrder
from prfaas.config import WorkerSettings

TRIVIAL_WORKER = Path(__file__).with_name("trivial_worker.py")
TRIVIAL_ENTRYPOINT = "tests.support.trivial_worker:run_worker"


def order(worker_id: str, starts: Path, mode: str = "polite", *, site: str | None = None) -> WorkerOrder:
    """An order for a trivial worker that records its starts in `starts`."""
    settings = WorkerSettings(
        worker_id=worker_id,
        site=site or "here",
        role="decode",
        model=mode,
        served_model_name=str(starts),
        router_address="127.0.0.1:1",
    )
    return WorkerOrder(settings, resources=((f"site:{site}", 0.001),) if site else ())


def starts_of(path: Path) -> list[list[int]]:
    """The pids of each start so far, the worker's own first."""
    if not path.exists():
        return []
    return [[int(pid) for pid in line.split()] for line in path.read_text().splitlines()]


def runs(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def eventually(check: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    """Wait until `check` holds; fail the test, saying what did not happen, after `timeout_s` seconds."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, f"within {timeout_s} s it did not happen that {what}"
        time.sleep(0.02)
