"""What runs inside a Ray actor: one worker, in a thread of its own, for as long as the actor's process lives.

Knows nothing of Ray. The worker's entry point is imported by name, because the packages above this one may not be
imported by it.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable

from prfaas.clock import MonotonicClock
from prfaas.cluster.address import with_own_address
from prfaas.config import WorkerSettings
from prfaas.log import configure_logging, logger

QUICK_FAILURE_S = 10.0
QUICK_FAILURE_PAUSE_S = 2.0
STDOUT_FD, STDERR_FD = 1, 2

log = logger(__name__)


def import_entrypoint(name: str) -> Callable[[WorkerSettings, threading.Event], None]:
    """Import `package.module:function`. Raises ImportError or AttributeError when there is no such thing."""
    module, _, function = name.partition(":")
    found: Callable[[WorkerSettings, threading.Event], None] = getattr(importlib.import_module(module), function)
    return found


class WorkerHost:
    """Runs `entrypoint(settings, stop)` in a thread. If that ends unasked, this process ends, for Ray to start it again."""

    def __init__(self, entrypoint: str, settings_json: str, log_file: str | None) -> None:
        settings = with_own_address(WorkerSettings.model_validate_json(settings_json))
        if log_file is not None:
            _redirect_output(log_file)
        configure_logging(settings.worker_id)
        self._entrypoint = entrypoint
        self._settings = settings
        self._stop = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=settings.worker_id, daemon=True).start()

    def pid(self) -> int:
        """The number of this process: a new one after each restart."""
        return os.getpid()

    def stop(self, drain_s: float) -> bool:
        """Ask the worker to drain and end; whether it did within `drain_s` seconds. The process stays until killed."""
        self._stop.set()
        return self._ended.wait(drain_s)

    def _run(self) -> None:
        clock = MonotonicClock()
        started_s = clock.now_s()
        try:
            import_entrypoint(self._entrypoint)(self._settings, self._stop)
        except Exception:
            log.exception("worker %s failed", self._settings.worker_id)
        if not self._stop.is_set():
            log.error("worker %s ended unasked; its process ends so that it is started again", self._settings.worker_id)
            if clock.now_s() - started_s < QUICK_FAILURE_S:
                self._stop.wait(QUICK_FAILURE_PAUSE_S)  # Ray starts it again at once: a hopeless worker must not spin
        if not self._stop.is_set():
            os._exit(1)
        self._ended.set()


def _redirect_output(log_file: str) -> None:
    """Send this process's output, native libraries' included, to a file."""
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, STDOUT_FD)
    os.dup2(descriptor, STDERR_FD)
    os.close(descriptor)
