"""The lifeline's own failures: without a reaper nothing is started, and nothing that was is lost sight of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prfaas.cluster.child import Child
from prfaas.cluster.lifeline import Lifeline
from prfaas.errors import StartupError
from tests.support.pools import eventually, runs


def reaper_of(parent: int) -> int:
    listing = subprocess.run(
        ["ps", "-ww", "--ppid", str(parent), "-o", "pid=,args="], capture_output=True, text=True, check=True
    ).stdout
    (pid,) = [int(line.split()[0]) for line in listing.splitlines() if "reaper.py" in line]
    return pid


def test_closing_ends_what_is_still_watched() -> None:
    lifeline = Lifeline()
    sleeper = subprocess.Popen(["sleep", "600"], process_group=0)
    lifeline.watch(sleeper.pid)
    lifeline.close()
    assert sleeper.wait(10) == -signal.SIGTERM
    lifeline.close()


def test_what_was_forgotten_is_spared() -> None:
    lifeline = Lifeline()
    sleeper = subprocess.Popen(["sleep", "600"], process_group=0)
    lifeline.watch(sleeper.pid)
    lifeline.forget(sleeper.pid)
    lifeline.close()
    assert sleeper.poll() is None
    sleeper.kill()
    sleeper.wait()


def test_a_group_that_ignores_sigterm_is_killed() -> None:
    lifeline = Lifeline()
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    stubborn = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, process_group=0)
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    lifeline.watch(stubborn.pid)
    lifeline.close()
    assert stubborn.wait(10) == -signal.SIGKILL
    stubborn.stdout.close()


@pytest.mark.fault
def test_without_a_reaper_no_child_is_left_running(tmp_path: Path) -> None:
    lifeline = Lifeline()
    os.kill(reaper_of(os.getpid()), signal.SIGKILL)
    marker = tmp_path / "pid"

    def refused() -> bool:
        try:
            child = Child(["bash", "-c", f"echo $$ > {marker}; exec sleep 600"], log=None, lifeline=lifeline)
        except StartupError:
            return True
        child.kill()  # the pipe took the line before the reaper was gone
        child.wait()
        return False

    eventually(refused, "a child was refused for want of a reaper")
    if marker.exists() and marker.read_text().strip():
        assert not runs(int(marker.read_text()))
    lifeline.close()
