"""A worker that computes nothing, for tests of the pools: it says that it runs, and ends as its model's name tells it to.

The `model` setting is a mode: `polite` waits for its stop, `stubborn` never stops, `crash` fails at once, `family` also
starts a process of its own. Each start appends its pid to the file named by `served_model_name`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from prfaas.config import WorkerSettings


def run_worker(settings: WorkerSettings, stop: threading.Event) -> None:
    """The entry point for Ray pools."""
    _run(settings.model, Path(settings.served_model_name), stop)


def _run(mode: str, starts: Path, stop: threading.Event) -> None:
    pids = [os.getpid()]
    if mode == "family":
        pids.append(subprocess.Popen(["sleep", "600"]).pid)
    with starts.open("a") as out:
        out.write(" ".join(map(str, pids)) + "\n")
    if mode == "crash":
        raise RuntimeError("told to crash")
    while mode == "stubborn":
        threading.Event().wait(60)
    stop.wait()


def _main() -> None:
    """The program for process pools: `trivial_worker.py --settings FILE`."""
    settings = json.loads(Path(sys.argv[sys.argv.index("--settings") + 1]).read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    print("hello from", settings["worker_id"], flush=True)
    _run(settings["model"], Path(settings["served_model_name"]), stop)


if __name__ == "__main__":
    _main()
