"""`prfaas serve` as a user runs it, for tests: started in a process of its own, watched, and left to end by itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx

from tests.support.emulated_hybrid import write_profile
from tests.support.pools import eventually, runs
from tests.support.text_models import write_text_model

READY_S = 90.0


def descendants(pid: int) -> set[int]:
    """All living descendants of a process."""
    listing = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = {int(child): int(parent) for child, parent in (line.split() for line in listing.splitlines())}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def write_served_model(directory: Path) -> Path:
    """A model directory with a real tokenizer, whose weights no emulated engine opens."""
    model = directory / "served-model"
    write_text_model(model)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    return model


class Served:
    """A running `prfaas serve` of an emulated model. `lines` is what it said so far."""

    def __init__(self, directory: Path, *flags: str, file: Path | None = None) -> None:
        self.cache = directory / "cache"
        profile = write_profile(directory / "profile.json", vocab_size=512)
        command = [sys.executable, "-m", "prfaas.cli", "serve", str(write_served_model(directory)), "--name", "m"]
        command += ["--emulate", str(profile), "--port", "0", *flags, *(["--file", str(file)] if file is not None else [])]
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PRFAAS_CACHE_DIR": str(self.cache)},
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._family: set[int] = set()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def wait_ready(self) -> None:
        """Wait until it says that it is ready; remembers every process it started."""

        def said() -> bool:
            assert self.process.poll() is None, "\n".join(self.lines)
            return any("ready after" in line for line in self.lines)

        eventually(said, "the system became ready", READY_S)
        self.remember()

    def remember(self) -> None:
        """Add the processes that exist now to those that must not outlive it."""
        self._family |= descendants(self.process.pid)

    @property
    def url(self) -> str:
        (line,) = [line for line in self.lines if "ready after" in line]
        return line.split(" at ")[1].split("/v1")[0]

    @property
    def run(self) -> Path:
        (run,) = (self.cache / "runs").iterdir()
        return run

    def members(self) -> dict[str, dict[str, Any]]:
        """What the drivers publish of their workers, by worker id."""
        files = self.run.glob("*.members.json")
        return {entry["worker_id"]: entry for file in files for entry in json.loads(file.read_text())}

    def driver_pids(self) -> dict[str, int]:
        """Pid of each direct child by the role its command line shows: "router" or "up"."""
        listing = subprocess.run(
            ["ps", "-ww", "--ppid", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(maxsplit=1) for line in listing.splitlines()]
        return {("router" if " -m router " in args else "up"): int(pid) for pid, args in rows if " -m " in args}

    def ask(self, text: str = "hello there", **fields: Any) -> httpx.Response:
        """One chat completion, not streamed."""
        body = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60, trust_env=False)

    def healthy_workers(self) -> int:
        try:
            counts = httpx.get(f"{self.url}/health", timeout=5, trust_env=False).json()["workers"]
        except httpx.HTTPError:
            return 0
        return sum(number for kind, number in counts.items() if kind.endswith(":healthy"))

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def wait_ended(self, timeout_s: float) -> int:
        """Its exit status."""
        status = self.process.wait(timeout_s)
        self._reader.join(5)
        return status

    def left(self) -> set[int]:
        """Processes it started that still run."""
        return {pid for pid in self._family if runs(pid)}

    def close(self) -> None:
        """End everything, whatever the test did."""
        self.remember()
        self.process.kill()
        self.process.wait()
        eventually(lambda: not self.left(), "everything ended", 60)
