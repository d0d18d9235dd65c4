"""Keeps one program running until told otherwise: the part that supervises, for workers and for whole sites alike."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prfaas.clock import Clock, MonotonicClock
from prfaas.cluster.backoff import Backoff
from prfaas.cluster.child import Child
from prfaas.cluster.lifeline import Lifeline
from prfaas.errors import StartupError
from prfaas.log import logger

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class KeeperState:
    """`pid` is None while the program is not running; `restarts` counts the starts after the first; `last_status` is how
    it last ended, None if it did not."""

    pid: int | None
    restarts: int
    last_status: int | None = None

    @property
    def alive(self) -> bool:
        return self.pid is not None


class Keeper:
    """Starts a program, and starts it again with back-off whenever it ends unasked.

    Its own thread is the only one that waits for the child; every method may be called from any thread.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        lifeline: Lifeline,
        log_file: Path | None = None,
        backoff: Backoff | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name
        self.log_file = log_file
        self._command = tuple(command)
        self._lifeline = lifeline
        self._backoff = backoff or Backoff()
        self._clock = clock or MonotonicClock()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._child: Child | None = None
        self._restarts = 0
        self._last_status: int | None = None
        self._thread = threading.Thread(target=self._keep, name=f"keep-{name}", daemon=True)

    def start(self) -> None:
        """Start the program for the first time. Raises StartupError if it cannot be started at all."""
        self._child = self._spawn()
        self._thread.start()

    def state(self) -> KeeperState:
        """How the program is now."""
        with self._lock:
            child, restarts, status = self._child, self._restarts, self._last_status
        return KeeperState(child.pid if child is not None and child.alive else None, restarts, status)

    def ask_to_stop(self) -> None:
        """Send SIGTERM, and do not start the program again. A second call sends it again."""
        with self._lock:
            self._stop.set()
            if self._child is not None:
                self._child.terminate()

    def finish(self, deadline_s: float) -> None:
        """Wait until the program that was asked to stop has ended; at `deadline_s` on the clock, end it."""
        self._thread.join(max(0.0, deadline_s - self._clock.now_s()))
        if self._thread.is_alive():
            with self._lock:
                if self._child is not None:
                    self._child.kill()
            self._thread.join()

    def _spawn(self) -> Child:
        return Child(self._command, log=self.log_file, lifeline=self._lifeline)

    def _keep(self) -> None:
        failures = 0
        while True:
            started_s = self._clock.now_s()
            status = self._child.wait() if self._child is not None else None
            if self._stop.is_set():
                return
            with self._lock:
                self._last_status = status
            failures = self._backoff.failures_after(failures, self._clock.now_s() - started_s)
            delay_s = self._backoff.delay_s(failures)
            log.warning("%s ended with status %s; starting it again in %.1f s", self.name, status, delay_s)
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
                self._child = self._spawn()
            except StartupError as error:
                log.error("%s: %s", self.name, error)
