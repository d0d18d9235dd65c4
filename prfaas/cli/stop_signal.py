"""Ctrl-C once: stop in order. Ctrl-C twice: stop at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopSignal:
    """Counts requests to stop. Inside `interruptible()` the first one also raises KeyboardInterrupt where it finds us.

    Handlers only count (and raise): taking a lock in a signal handler could wait for the very code it interrupted.
    """

    def __init__(self) -> None:
        self._count = 0
        self._raising = False

    @property
    def asked(self) -> bool:
        """Somebody wants this process to stop."""
        return self._count >= 1

    @property
    def hurried(self) -> bool:
        """Somebody asked a second time."""
        return self._count >= 2

    def install(self) -> None:
        """Take over the stop signals of this process. Call from the main thread, after ray.init, which takes SIGTERM."""
        for number in STOPPING:
            signal.signal(number, self._on_signal)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a stop signal interrupt the body with KeyboardInterrupt, as it would without us."""
        if self.asked:
            raise KeyboardInterrupt
        self._raising = True
        try:
            yield
        finally:
            self._raising = False

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._raising:
            self._raising = False
            raise KeyboardInterrupt
