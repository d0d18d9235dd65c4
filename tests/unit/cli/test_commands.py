"""The `prfaas` command as a user meets it: help, exit statuses, and errors in one readable line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from prfaas.cli.doctor import CHECKS, Verdict


def prfaas(*arguments: str, cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": "/usr/bin:/bin", "PRFAAS_CACHE_DIR": str(cache or "/nonexistent/cache")}
    command = [sys.executable, "-m", "prfaas.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)


def test_help_lists_the_commands_and_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys\n"
        "sys.argv = ['prfaas', '--help']\n"
        "from prfaas.cli import main\n"
        "try: main()\n"
        "except SystemExit: print([m for m in ('torch', 'ray', 'transformers') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.endswith("[]\n"), done.stdout + done.stderr
    for command in ("serve", "demo", "up", "worker", "route", "status", "chat", "doctor"):
        assert command in done.stdout


def test_an_unknown_model_is_one_line_and_names_what_is_accepted(tmp_path: Path) -> None:
    done = prfaas("serve", "smolm2", cache=tmp_path)
    assert done.returncode == 1
    assert "Did you mean 'smollm2'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    done = prfaas("serve", "smollm2", "--pool", "rey", cache=tmp_path)
    assert done.returncode == 1
    assert "pool" in done.stderr
    assert "'ray' or 'process'" in done.stderr


def test_status_of_nothing_fails_and_says_so() -> None:
    done = prfaas("status", "--url", "http://127.0.0.1:1", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"url": "http://127.0.0.1:1", "reachable": False}


@pytest.mark.parametrize("command", ["worker", "route", "up"])
def test_a_missing_settings_file_is_a_usage_error(command: str) -> None:
    flag = "--site" if command == "up" else "--settings"
    done = prfaas(command, flag, "/nonexistent.yaml", *(["--router", "127.0.0.1:1"] if command == "up" else []))
    assert done.returncode == 2
    assert "does not exist" in done.stderr


def test_every_check_finds_something_out_and_advises_on_what_is_not_well() -> None:
    for check in CHECKS:
        finding = check()
        assert finding.what
        assert finding.found
        assert finding.verdict is Verdict.OK or finding.advice, finding
