"""This process's end of its reaper: children and files registered here do not survive this process, whatever kills it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path

from prfaas.errors import StartupError

REAPER = Path(__file__).with_name("reaper.py")


class Lifeline:
    """Starts a reaper and tells it which process groups depend on this process. Thread-safe; `close` is idempotent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        try:
            # A session of its own: neither the terminal's Ctrl-C nor its hang-up reaches the reaper before its work.
            self._reaper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(REAPER)], stdin=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise StartupError(f"cannot start the process reaper: {error}", what="reaper") from error
        if self._reaper.stdin is None:
            raise StartupError("the process reaper has no pipe", what="reaper")
        self._pipe = self._reaper.stdin

    def watch(self, group: int) -> None:
        """From now on, `group` dies when this process does. Raises StartupError when the reaper is gone."""
        self._require(f"watch {group}")

    def forget(self, group: int) -> None:
        """`group` has ended; its number may be reused by strangers from now on."""
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._say(f"forget {group}")

    def remove(self, directory: Path) -> None:
        """From now on, `directory` is removed when this process ends. Raises StartupError when the reaper is gone."""
        self._require(f"remove {directory}")

    def close(self) -> None:
        """End the reaper. Groups still watched are ended, and directories removed, before this returns."""
        with self._lock, contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._reaper.wait()

    def _require(self, line: str) -> None:
        with self._lock:
            try:
                self._say(line)
            except (BrokenPipeError, ValueError) as error:  # ValueError: the pipe is closed
                raise StartupError("the process reaper is gone", what="reaper") from error

    def _say(self, line: str) -> None:
        self._pipe.write(f"{line}\n".encode())
        self._pipe.flush()
