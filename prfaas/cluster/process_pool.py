"""Worker pool of local processes: for tests, for machines without Ray, and for sites run by another supervisor."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prfaas.clock import Clock, MonotonicClock
from prfaas.cluster.address import with_own_address
from prfaas.cluster.api import PoolMember, WorkerOrder
from prfaas.cluster.backoff import Backoff
from prfaas.cluster.keeper import Keeper
from prfaas.cluster.lifeline import Lifeline
from prfaas.errors import StartupError

WORKER_COMMAND = (sys.executable, "-m", "prfaas.worker")


class ProcessPool:
    """Runs each worker as `COMMAND --settings FILE` and starts it again, with back-off, whenever it ends unasked.

    With `log_dir` each worker writes to `log_dir/WORKER_ID.log`, otherwise to this process's output. No worker
    outlives this process, even when it is killed.
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
        self._backoff = backoff
        self._clock = clock or MonotonicClock()
        self._lifeline = Lifeline()
        self._settings_dir = Path(tempfile.mkdtemp(prefix="prfaas-workers-"))
        self._lifeline.remove(self._settings_dir)
        self._keepers: dict[str, Keeper] = {}
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
            settings.write_text(with_own_address(order.settings).model_dump_json())
            keeper = Keeper(
                worker_id,
                (*self._command, "--settings", str(settings)),
                lifeline=self._lifeline,
                log_file=self._log_dir / f"{worker_id}.log" if self._log_dir is not None else None,
                backoff=self._backoff,
                clock=self._clock,
            )
            keeper.start()
            self._keepers[worker_id] = keeper

    def members(self) -> tuple[PoolMember, ...]:
        """See WorkerPool.members."""
        states = [(keeper.name, keeper.state()) for keeper in list(self._keepers.values())]
        return tuple(PoolMember(name, s.pid, s.alive, s.restarts, s.last_status) for name, s in states)

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
