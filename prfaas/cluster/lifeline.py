"""This process's end of its reaper: children registered here do not survive this process, whatever kills it."""

from __future__ import annotations

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
                [sys.executable, "-I", "-S", str(REAPER)], stdin=subprocess.PIPE, text=True, start_new_session=True
            )
        except OSError as error:
            raise StartupError(f"cannot start the process reaper: {error}", what="reaper") from error

    def watch(self, group: int) -> None:
        """From now on, `group` dies when this process does."""
        self._say(f"watch {group}")

    def forget(self, group: int) -> None:
        """`group` has ended; its number may be reused by strangers from now on."""
        self._say(f"forget {group}")

    def close(self) -> None:
        """End the reaper. Groups still watched are ended with it."""
        with self._lock:
            if self._reaper.stdin is not None and not self._reaper.stdin.closed:
                self._reaper.stdin.close()
        self._reaper.wait()

    def _say(self, line: str) -> None:
        with self._lock:
            if self._reaper.stdin is None or self._reaper.stdin.closed:
                raise StartupError("the process reaper is closed", what="reaper")
            try:
                self._reaper.stdin.write(line + "\n")
                self._reaper.stdin.flush()
            except BrokenPipeError as error:
                raise StartupError("the process reaper was killed", what="reaper") from error
