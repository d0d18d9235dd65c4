"""The program that outlives a parent killed with SIGKILL, and takes its children down.

Run as a script. It reads `watch PGID` and `forget PGID` lines from its standard input, whose other end only the
parent holds. When the parent is gone, however it went, the input ends; then every watched process group gets SIGTERM
and, after a grace period, SIGKILL. Children need not cooperate and need not know. Standard library only, so that it
starts in milliseconds and never fails to import.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable

GRACE_S = 2.0
POLL_S = 0.05


def read_groups(lines: Iterable[str]) -> set[int]:
    """The process groups still watched when the input ends."""
    groups: set[int] = set()
    for line in lines:
        verb, _, number = line.strip().partition(" ")
        if verb == "watch":
            groups.add(int(number))
        elif verb == "forget":
            groups.discard(int(number))
    return groups


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
    """Wait for the parent's end, then end its children."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    alive = signal_groups(read_groups(sys.stdin), signal.SIGTERM)
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
