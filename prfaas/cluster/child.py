"""One child process in a process group of its own. Knows no policy: it starts, signals and reaps."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from prfaas.cluster.lifeline import Lifeline
from prfaas.config import child_environment
from prfaas.errors import StartupError


class Child:
    """A running program and everything it starts, signalled and ended as one.

    The group is its own so that a terminal's Ctrl-C reaches only the parent, who stops things in order. Standard
    input is a pipe that is never written: it ends when the parent does. Output goes to `log` (appended), or to the
    parent's own output when `log` is None. Settings reach it by its command, not by `PRFAAS_` variables. Exactly one
    thread calls `wait`.
    """

    def __init__(self, command: Sequence[str], *, log: Path | None, lifeline: Lifeline) -> None:
        self._lock = threading.Lock()
        self._reaped = False
        self._lifeline = lifeline
        self._ended = threading.Event()
        self.command = tuple(command)
        try:
            with contextlib.ExitStack() as files:
                out = files.enter_context(log.open("ab")) if log is not None else None
                self._process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=out,
                    stderr=None if out is None else subprocess.STDOUT,
                    env=child_environment(),
                    process_group=0,
                )
        except OSError as error:
            raise StartupError(f"cannot start {command[0]}: {error}", what=command[0]) from error
        try:
            lifeline.watch(self._process.pid)
        except StartupError:
            self.kill()  # unguarded, it could outlive us
            self._process.wait()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return not self._ended.is_set()

    def wait(self) -> int:
        """Block until the program ends, end what it left in its group, and return its exit status (negative: a signal)."""
        # While the program is a zombie its number cannot be reused, so the group signalled here is surely its own.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        self.kill()
        with self._lock:
            self._lifeline.forget(self.pid)
            status = self._process.wait()
            self._reaped = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._ended.set()
        return status

    def wait_ended(self, timeout_s: float) -> bool:
        """Whether the program ended (and was reaped) within `timeout_s` seconds. Callable from any thread."""
        return self._ended.wait(timeout_s)

    def terminate(self) -> None:
        """Ask the program to stop."""
        with self._lock:
            if not self._reaped:
                os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the whole group at once."""
        with self._lock:
            if not self._reaped:
                try:
                    os.killpg(self.pid, signal.SIGKILL)
                except ProcessLookupError:
                    return
