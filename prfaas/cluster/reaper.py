"""The program that outlives a parent killed with SIGKILL, takes its children down and removes the files it left.

Run as a script. It reads `watch PGID`, `forget PGID` and `remove DIRECTORY` lines from its standard input, whose other end
only the parent holds. When the parent is gone, however it went, the input ends; then every watched process group gets
SIGTERM and, after a grace period, SIGKILL, and the directories are removed. Children need not cooperate and need not know.
Standard library only, so that it starts in milliseconds and never fails to import.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

GRACE_S = 2.0
POLL_S = 0.05


@dataclass
class Remains:
    """What a parent leaves behind: process groups that still run, and directories that nobody needs any more."""

    groups: set[int] = field(default_factory=set)
    directories: list[str] = field(default_factory=list)


def read_remains(lines: Iterable[str]) -> Remains:
    """What is left when the input ends."""
    remains = Remains()
    for line in lines:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "watch":
            remains.groups.add(int(rest))
        elif verb == "forget":
            remains.groups.discard(int(rest))
        elif verb == "remove":
            remains.directories.append(rest)
    return remains


def signal_groups(groups: set[int], number: signal.Signals) -> set[int]:
    """Signal every group; returns those that still exist."""
    alive = set()
    for group in groups:
        try:
            os.killpg(group, number)
        except (ProcessLookupError, PermissionError):
            continue
        alive.add(group)
    return alive


def main() -> None:
    """Wait for the parent's end, then end its children and remove its directories."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    remains = read_remains(sys.stdin)
    end_groups(remains.groups)
    for directory in remains.directories:
        shutil.rmtree(directory, ignore_errors=True)


def end_groups(groups: set[int]) -> None:
    """End process groups, politely and then firmly. Returns as soon as all are gone."""
    alive = signal_groups(groups, signal.SIGTERM)
    for _ in range(int(GRACE_S / POLL_S)):
        if not alive:
            return
        time.sleep(POLL_S)
        alive = {group for group in alive if _exists(group)}
    signal_groups(alive, signal.SIGKILL)


def _exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    main()
