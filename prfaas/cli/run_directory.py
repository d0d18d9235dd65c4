"""Where one run of the system keeps its settings files and logs, and what a site's driver tells about its workers."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prfaas.cluster.api import PoolMember

KEPT_RUNS = 5
TAIL_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Files of one run. They outlive it, for whoever looks into a failure; older runs are removed when a new one begins."""

    path: Path

    @classmethod
    def create(cls, cache: Path, number: int) -> RunDirectory:
        """Begin a run; `number` tells it from others (a process id)."""
        runs = cache / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        old = sorted((p for p in runs.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for stale in old[: max(0, len(old) - KEPT_RUNS + 1)]:
            if not _in_use(stale):
                shutil.rmtree(stale, ignore_errors=True)
        path = runs / str(number)
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return cls(path)

    def log_file(self, name: str) -> Path:
        return self.path / f"{name}.log"

    def write_settings(self, name: str, text: str) -> Path:
        """Write a settings file (readable only by this user: settings may name secrets) and return its path."""
        path = self.path / f"{name}.json"
        path.write_text(text)
        path.chmod(0o600)
        return path

    def write_members(self, driver: str, members: Sequence[PoolMember]) -> None:
        """Publish what a driver knows of its workers, whole or not at all."""
        part = self.path / f".{driver}.part"
        part.write_text(json.dumps([asdict(member) for member in members]))
        part.replace(self.path / f"{driver}.members.json")

    def read_members(self) -> tuple[PoolMember, ...]:
        """All workers of all drivers of this run, as last published."""
        files = sorted(self.path.glob("*.members.json"))
        return tuple(PoolMember(**entry) for file in files for entry in json.loads(file.read_text()))

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a log, or a note that there is none."""
        path = self.log_file(name)
        if not path.is_file():
            return f"(no log at {path})"
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])


def _in_use(run: Path) -> bool:
    try:
        os.kill(int(run.name), 0)
    except ValueError:
        return True  # not one of ours: leave it alone
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
