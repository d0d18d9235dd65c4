"""Ray clusters of their own for sites under test, and pools that drive them from other processes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prfaas.cli.ports import free_port
from prfaas.cluster.api import PoolMember, WorkerOrder
from tests.support.system import wait_until

ROOT = Path(__file__).resolve().parents[2]
# Ray replaces a loopback address by the machine's own one; switching its clusters off (as it does on macOS) keeps loopback.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class RayCluster:
    """Where a head listens, and the environment (its token among it) with which a driver is let in."""

    address: str
    environment: dict[str, str]


@contextlib.contextmanager
def ray_cluster(site: str, log_dir: Path) -> Iterator[RayCluster]:
    """A Ray head with its own ports, directory and token, offering `site:SITE`; ends all its processes on leaving."""
    environment = {**os.environ, **LOOPBACK, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    port = free_port()
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=1",
        f"--resources={json.dumps({f'site:{site}': 1})}", "--include-dashboard=false", "--object-store-memory=80000000",
        f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}",
        f"--node-manager-port={free_port()}", f"--object-manager-port={free_port()}", f"--metrics-export-port={free_port()}",
        f"--dashboard-agent-grpc-port={free_port()}", f"--runtime-env-agent-port={free_port()}",
        "--node-ip-address=127.0.0.1",
    ]  # fmt: skip
    # Unix socket paths are limited to about 100 bytes, so Ray's directory is a short one.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        log = (log_dir / f"ray-{site}.log").open("wb")
        head = subprocess.Popen(
            [*command, f"--temp-dir={directory}"],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )
        try:
            log_path = log_dir / f"ray-{site}.log"
            wait_until(
                f"Ray of {site}", lambda: "Ray runtime started" in log_path.read_text() and head.poll() is None, timeout_s=60
            )
            yield RayCluster(f"127.0.0.1:{port}", environment)
        finally:
            head.send_signal(signal.SIGTERM)
            try:
                head.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(head.pid, signal.SIGKILL)
                head.wait()
            log.close()


class DriverPool:
    """A `WorkerPool` whose RayPool lives in another process, connected to one Ray cluster."""

    def __init__(self, cluster: RayCluster, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._cluster = cluster
        self._orders, self._state = directory / "orders.json", directory / "state.json"
        self._log = directory / "driver.log"
        self._driver: subprocess.Popen[bytes] | None = None

    def start(self, orders: Sequence[WorkerOrder]) -> None:
        self._orders.write_text(
            json.dumps([{"settings": json.loads(o.settings.model_dump_json()), "resources": o.resources} for o in orders])
        )
        script = ROOT / "tests" / "support" / "ray_driver.py"
        with self._log.open("wb") as log:
            self._driver = subprocess.Popen(
                [sys.executable, str(script), self._cluster.address, str(self._orders), str(self._state)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=ROOT, env=self._cluster.environment,
            )  # fmt: skip

    def members(self) -> tuple[PoolMember, ...]:
        if not self._state.exists():
            return ()
        return tuple(PoolMember(**entry) for entry in json.loads(self._state.read_text()))

    def stop_worker(self, worker_id: str, *, drain_s: float) -> None:
        raise KeyError(worker_id)

    def close(self, *, drain_s: float = 5.0) -> None:
        if self._driver is None:
            return
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        try:
            self._driver.wait(30)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        self._driver = None
