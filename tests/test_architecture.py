"""The house's rules hold: import contracts, where time and environment are read, and no package named like a dependency's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("prfaas", "router", "prefill_service", "decode_service", "kv_transport")


def _sources() -> list[Path]:
    return [p for package in PACKAGES for p in (ROOT / package).rglob("*.py") if "_pb2" not in p.name]


def test_import_contracts() -> None:
    pytest.importorskip("importlinter")
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_only_the_clock_reads_time_and_only_config_reads_the_environment() -> None:
    time_call = re.compile(r"\btime\.(time|monotonic|perf_counter)(_ns)?\(|datetime\.(now|utcnow)\(")
    environment = re.compile(r"\bos\.(environ|getenv)\b")
    for path in _sources():
        text = path.read_text()
        name = path.relative_to(ROOT).as_posix()
        if name != "prfaas/clock.py":
            assert not time_call.search(text), f"{name} reads time"
        if name != "prfaas/config.py":
            assert not environment.search(text), f"{name} reads the environment"


def test_every_module_says_what_it_is() -> None:
    silent = [p.relative_to(ROOT).as_posix() for p in _sources() if not p.read_text().lstrip().startswith('"""')]
    assert silent == []


def test_files_stay_small() -> None:
    large = {p.relative_to(ROOT).as_posix(): n for p in _sources() if (n := len(p.read_text().splitlines())) > 400}
    assert large == {}


def test_proto_holds_no_package() -> None:
    assert not (ROOT / "proto" / "__init__.py").exists(), "proto/ would shadow the proto-plus package that Ray imports"


def test_light_packages_import_without_torch_or_ray() -> None:
    """Router, planner, transport, scheduler and the engine's core start on machines that have neither."""
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'ray', 'triton'):\n"
        "            raise ImportError(f'{name} is blocked in this test')\n"
        "sys.meta_path.insert(0, Block())\n"
        "import router.main, kv_transport.grpc_client, kv_transport.grpc_server, prfaas.planner.plan\n"
        "import prfaas.engine.core, prfaas.engine.loop, prfaas.engine.emulated, prefill_service, decode_service\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
