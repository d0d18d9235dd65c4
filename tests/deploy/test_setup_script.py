"""What `make setup` says on machines that lack something. The failing parts are played by small programs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).parents[2] / "scripts" / "setup.sh"


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with the shell's tools and no Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in ("bash", "env", "rm", "mkdir", "cat"):
        found = next(path for path in (Path("/usr/bin") / tool, Path("/bin") / tool) if path.exists())
        (directory / tool).symlink_to(found)
    return directory


def program(path: Path, text: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)
    return path


def setup(tools: Path, python: str, venv: Path) -> subprocess.CompletedProcess[str]:
    command = [str(tools / "bash"), str(SETUP), python, str(venv), "2.13.0", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tools)}, timeout=60, check=False)


def test_no_python_that_is_new_enough(tools: Path, tmp_path: Path) -> None:
    program(tools / "python3", "exit 1  # says of itself that it is too old")
    done = setup(tools, "python3", tmp_path / "venv")
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "sudo apt install python3 python3-venv" in done.stderr


def test_debian_without_the_venv_package(tools: Path, tmp_path: Path) -> None:
    program(
        tools / "python3",
        f'if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin"; echo "ensurepip is not available"; exit 1; fi\n'
        f'exec {sys.executable} "$@"',
    )
    done = setup(tools, "python3", tmp_path / "venv")
    assert done.returncode == 1
    assert "ensurepip is not available" in done.stderr
    assert "sudo apt install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists(), "a half-made environment would be taken for a whole one"


def test_another_python_is_found_when_the_default_is_too_old(tools: Path, tmp_path: Path) -> None:
    program(tools / "python3", "exit 1")
    program(tools / "python3.11", f'if [ "$1 $2" = "-m venv" ]; then echo chosen; exit 1; fi\nexec {sys.executable} "$@"')
    done = setup(tools, "python3", tmp_path / "venv")
    assert "chosen" in done.stderr


def test_a_moved_environment_is_made_anew(tools: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    (venv / "leftover").write_text("")
    program(tools / "python3", f'if [ "$1 $2" = "-m venv" ]; then echo made; exit 1; fi\nexec {sys.executable} "$@"')
    done = setup(tools, "python3", venv)
    assert "virtual environment in" in done.stdout
    assert not (venv / "leftover").exists()
