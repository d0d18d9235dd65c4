"""`python -m prfaas.worker --settings FILE`: one worker as a process of its own.

SIGTERM and SIGINT drain and stop it. With `--watch-stdin` so does the end of standard input, which a parent that holds
the other end of the pipe causes by dying, however it dies; without the flag standard input is not touched, because
service managers start programs with an empty one.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from prfaas.config import WorkerSettings, resolve
from prfaas.errors import OperatorError
from prfaas.log import configure_logging, logger
from prfaas.worker.main import run_worker

log = logger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one worker; returns the exit status: 0 after a stop, 2 for what an operator must change."""
    parser = argparse.ArgumentParser(prog="python -m prfaas.worker", description="Run one prfaas worker.")
    parser.add_argument(
        "--settings", type=Path, required=True, help="settings file (JSON or YAML), /dev/stdin for standard input"
    )
    parser.add_argument("--watch-stdin", action="store_true", help="stop when standard input ends")
    options = parser.parse_args(arguments)
    try:
        settings = resolve(WorkerSettings, file=options.settings, environ={})
        configure_logging(f"{settings.role} {settings.worker_id}")
        run_worker(settings, _stop_event(options.watch_stdin))
    except OperatorError as error:
        print(f"prfaas worker: {error}", file=sys.stderr)
        return 2
    return 0


def _stop_event(watch_stdin: bool) -> threading.Event:
    stop = threading.Event()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait for the drain

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    if watch_stdin:
        threading.Thread(target=_wait_for_end, args=(stop,), name="stdin-watch", daemon=True).start()
    return stop


def _wait_for_end(stop: threading.Event) -> None:
    while sys.stdin.buffer.read(4096):
        pass
    stop.set()


if __name__ == "__main__":
    sys.exit(main())
