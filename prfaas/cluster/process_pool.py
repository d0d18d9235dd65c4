"""Worker pool of local processes: for tests, for machines without Ray, and for sites run by another supervisor."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from prfaas.clock import Clock, MonotonicClock
from prfaas.cluster.api import PoolMember, WorkerOrder
from prfaas.cluster.backoff import Backoff
from prfaas.cluster.child import Child
from prfaas.cluster.lifeline import Lifeline
from prfaas.errors import StartupError
from prfaas.log import logger

WORKER_COMMAND = (sys.executable, "-m", "prfaas.worker")

log = logger(__name__)


class ProcessPool:
    """Runs each worker as `COMMAND --settings FILE` and starts it again, with back-off, whenever it ends unasked.

    With `log_dir` each worker writes to `log_dir/WORKER_ID.log`, otherwise to this process's output.
    """

    def __init__(
        self,
        *,
        log_dir: Path | None = None,
        command: Sequence[str] = WORKER_COMMAND,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._log_dir = log_dir
        self._command = tuple(command)
        self._backoff = backoff or Backoff()
        self._clock = clock or MonotonicClock()
        self._lifeline = Lifeline()
        self._settings_dir = Path(tempfile.mkdtemp(prefix="prfaas-workers-"))
        self._keepers: dict[str, _Keeper] = {}
        self._closing = False

    def start(self, orders: Sequence[WorkerOrder]) -> None:
        """See WorkerPool.start. Raises StartupError for a worker id that is already running or a program that cannot start."""
        if self._closing:
            raise StartupError("this pool is closed", what="process pool")
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        for order in orders:
            worker_id = order.settings.worker_id
            if worker_id in self._keepers:
                raise StartupError(f"worker {worker_id} is already running", what=worker_id)
            settings = self._settings_dir / f"{worker_id}.json"
            settings.write_text(order.settings.model_dump_json())
            command = (*self._command, "--settings", str(settings))
            log_file = self._log_dir / f"{worker_id}.log" if self._log_dir is not None else None
            keeper = _Keeper(worker_id, _Recipe(command, log_file, self._lifeline), self._backoff, self._clock)
            keeper.start()
            self._keepers[worker_id] = keeper

    def members(self) -> tuple[PoolMember, ...]:
        """See WorkerPool.members."""
        return tuple(keeper.member() for keeper in list(self._keepers.values()))

    def stop_worker(self, worker_id: str, *, drain_s: float) -> None:
        """See WorkerPool.stop_worker."""
        keeper = self._keepers[worker_id]
        keeper.ask_to_stop()
        keeper.finish(self._clock.now_s() + drain_s)
        self._keepers.pop(worker_id, None)

    def close(self, *, drain_s: float = 5.0) -> None:
        """See WorkerPool.close."""
        self._closing = True
        keepers = list(self._keepers.values())
        for keeper in keepers:
            keeper.ask_to_stop()
        deadline_s = self._clock.now_s() + drain_s
        for keeper in keepers:
            keeper.finish(deadline_s)
        self._lifeline.close()
        shutil.rmtree(self._settings_dir, ignore_errors=True)


class _Recipe:
    """How to start one worker, any number of times."""

    def __init__(self, command: tuple[str, ...], log_file: Path | None, lifeline: Lifeline) -> None:
        self._command = command
        self._log_file = log_file
        self._lifeline = lifeline

    def spawn(self) -> Child:
        return Child(self._command, log=self._log_file, lifeline=self._lifeline)


class _Keeper:
    """Keeps one worker running until told otherwise. Its thread is the only one that waits for the child."""

    def __init__(self, worker_id: str, recipe: _Recipe, backoff: Backoff, clock: Clock) -> None:
        self._worker_id = worker_id
        self._recipe = recipe
        self._backoff = backoff
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._child: Child | None = None
        self._restarts = 0
        self._thread = threading.Thread(target=self._keep, name=f"keep-{worker_id}", daemon=True)

    def start(self) -> None:
        """Start the worker for the first time; raises StartupError if its program cannot be started at all."""
        self._child = self._recipe.spawn()
        self._thread.start()

    def member(self) -> PoolMember:
        with self._lock:
            child, restarts = self._child, self._restarts
        alive = child is not None and child.alive
        return PoolMember(self._worker_id, child.pid if child is not None and alive else None, alive, restarts)

    def ask_to_stop(self) -> None:
        with self._lock:
            self._stop.set()
            if self._child is not None:
                self._child.terminate()

    def finish(self, deadline_s: float) -> None:
        """Wait for the worker's end until `deadline_s` on the pool's clock, then end it."""
        self._thread.join(max(0.0, deadline_s - self._clock.now_s()))
        if self._thread.is_alive():
            with self._lock:
                if self._child is not None:
                    self._child.kill()
            self._thread.join()

    def _keep(self) -> None:
        failures = 0
        while True:
            started_s = self._clock.now_s()
            status = self._child.wait() if self._child is not None else None
            if self._stop.is_set():
                return
            failures = self._backoff.failures_after(failures, self._clock.now_s() - started_s)
            delay_s = self._backoff.delay_s(failures)
            log.warning("worker %s ended with status %s; starting it again in %.1f s", self._worker_id, status, delay_s)
            if self._stop.wait(delay_s):
                return
            self._respawn()

    def _respawn(self) -> None:
        with self._lock:
            if self._stop.is_set():
                return
            self._child = None
            self._restarts += 1
            try:
                self._child = self._recipe.spawn()
            except StartupError as error:
                log.error("worker %s: %s", self._worker_id, error)
