"""Worker pool on Ray: one restarting actor per worker. The only file of the project that imports Ray.

A driver process can be connected to one Ray cluster at a time. Sites with clusters of their own therefore have
driver processes of their own (`prfaas up`); sites without share the local instance that this pool starts.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError

from prfaas.cluster.api import WORKER_ENTRYPOINT, PoolMember, WorkerOrder
from prfaas.cluster.lifeline import Lifeline
from prfaas.cluster.ray_host import WorkerHost
from prfaas.config import export_environment
from prfaas.errors import StartupError
from prfaas.log import logger

OBJECT_STORE_BYTES = 80 * 1024**2  # Ray's minimum is near this; workers exchange nothing through the object store
POLL_S = 1.0
KILL_S = 5.0
CONNECT_S = 5.0
CALLS_AT_ONCE = 4  # `pid` must answer while `stop` waits

log = logger(__name__)


@dataclass(slots=True)
class _Member:
    """The pool's book-keeping for one actor. `asked` is the one `pid` call under way, if any."""

    actor: ActorHandle
    pid: int | None = None
    alive: bool = False
    restarts: int = 0
    asked: ray.ObjectRef | None = None


class RayPool:
    """Workers as actors of one Ray cluster: the one at `address`, or a local one that lives and dies with this pool.

    With `log_dir` (local Ray only) each worker writes to `log_dir/WORKER_ID.log`; otherwise Ray keeps the logs and
    forwards them to this process.
    """

    def __init__(self, *, address: str | None = None, log_dir: Path | None = None, entrypoint: str = WORKER_ENTRYPOINT) -> None:
        self._address = address
        self._log_dir = log_dir if address is None else None
        self._entrypoint = entrypoint
        self._lock = threading.Lock()
        self._members: dict[str, _Member] = {}
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        self._lifeline: Lifeline | None = None

    def start(self, orders: Sequence[WorkerOrder]) -> None:
        """See WorkerPool.start. The first call connects to Ray or starts it; a local Ray offers what these orders need."""
        if self._closing.is_set():
            raise StartupError("this pool is closed", what="Ray pool")
        if self._watcher is None:
            self._connect(orders)
            self._watcher = threading.Thread(target=self._watch, name="ray-pool", daemon=True)
            self._watcher.start()
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        for order in orders:
            worker_id = order.settings.worker_id
            if worker_id in self._members:
                raise StartupError(f"worker {worker_id} is already running", what=worker_id)
            with self._lock:
                self._members[worker_id] = _Member(self._create(order))

    def members(self) -> tuple[PoolMember, ...]:
        """See WorkerPool.members. Asks every actor; one that does not answer within a second counts as not alive."""
        with self._lock:
            self._refresh()
            return tuple(PoolMember(name, m.pid, m.alive, m.restarts) for name, m in self._members.items())

    def stop_worker(self, worker_id: str, *, drain_s: float) -> None:
        """See WorkerPool.stop_worker."""
        member = self._members[worker_id]
        self._stop_actors([member.actor], drain_s)
        with self._lock:
            self._members.pop(worker_id, None)

    def close(self, *, drain_s: float = 5.0) -> None:
        """See WorkerPool.close. A Ray cluster that this pool only connected to goes on running."""
        self._closing.set()
        if self._watcher is None or not ray.is_initialized():
            return
        self._stop_actors([member.actor for member in list(self._members.values())], drain_s)
        self._watcher.join()
        ray.shutdown()
        if self._lifeline is not None:
            self._lifeline.forget(os.getpgrp())
            self._lifeline.close()
            self._lifeline = None

    def _connect(self, orders: Sequence[WorkerOrder]) -> None:
        if ray.is_initialized():
            raise StartupError("this process already drives a Ray cluster", what="Ray")
        if self._address is not None:
            _require_listener(self._address)
        export_environment({"RAY_USAGE_STATS_ENABLED": "0"})
        logger("ray").setLevel("ERROR")
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            if self._address is not None:
                ray.init(address=self._address, configure_logging=False, log_to_driver=True)
            else:
                self._guard_group()
                wanted: Counter[str] = Counter()
                for order in orders:
                    wanted.update(dict(order.resources))
                ray.init(
                    address="local",
                    # Exactly what the orders ask for: Ray starts an idle process for every processor it is told of.
                    num_cpus=math.ceil(sum(order.num_cpus for order in orders)),
                    resources={name: float(math.ceil(amount)) for name, amount in wanted.items()},
                    object_store_memory=OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    configure_logging=False,
                    log_to_driver=self._log_dir is None,
                )
        except (RayError, ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            where = f"the Ray cluster at {self._address}" if self._address is not None else "a local Ray"
            raise StartupError(f"cannot reach {where}: {error}", what="Ray") from error
        finally:
            # ray.init replaces the handler of the process that it was called from, which has an order of its own.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)
        self._warn_about_missing_resources(orders)

    def _guard_group(self) -> None:
        """Have a local Ray die with this process, even by SIGKILL, after which some of Ray's agents linger for a minute.

        Ray's processes stay in this process's group; ending it is right only where this process leads it.
        """
        if os.getpgrp() == os.getpid():
            self._lifeline = Lifeline()
            self._lifeline.watch(os.getpgrp())

    def _warn_about_missing_resources(self, orders: Sequence[WorkerOrder]) -> None:
        offered = ray.cluster_resources()
        for name in sorted({name for order in orders for name, _ in order.resources}):
            if name not in offered:
                log.warning("no Ray node offers the resource %r yet; its workers wait for one to join", name)

    def _create(self, order: WorkerOrder) -> ActorHandle:
        settings = order.settings
        log_file = str(self._log_dir / f"{settings.worker_id}.log") if self._log_dir is not None else None
        host = ray.remote(WorkerHost).options(
            num_cpus=order.num_cpus,
            num_gpus=order.num_gpus,
            resources=dict(order.resources),
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
        )
        actor: ActorHandle = host.remote(self._entrypoint, settings.model_dump_json(), log_file)
        return actor

    def _watch(self) -> None:
        while not self._closing.wait(POLL_S):
            with self._lock:
                self._refresh()

    def _refresh(self) -> None:
        """Ask every actor for its pid; a changed one is a restart."""
        for member in self._members.values():
            if member.asked is None:
                member.asked = member.actor.pid.remote()
        asked = [member.asked for member in self._members.values() if member.asked is not None]
        ready = set(ray.wait(asked, num_returns=len(asked), timeout=POLL_S)[0]) if asked else set()
        for name, member in self._members.items():
            if member.asked not in ready:
                member.alive = False
                continue
            reference, member.asked = member.asked, None
            try:
                pid = int(ray.get(reference))
            except RayError:
                member.alive = False
                continue
            if member.pid is not None and member.pid != pid:
                member.restarts += 1
                log.warning("worker %s was started again by Ray (process %d, was %d)", name, pid, member.pid)
            member.pid, member.alive = pid, True

    def _stop_actors(self, actors: Sequence[ActorHandle], drain_s: float) -> None:
        """Ask actors to stop, give them `drain_s` seconds together, then end them for good and wait until they are gone."""
        asked = [actor.stop.remote(drain_s) for actor in actors]
        if asked and drain_s > 0:
            ray.wait(asked, num_returns=len(asked), timeout=drain_s)
        for actor in actors:
            ray.kill(actor, no_restart=True)
        for actor in actors:
            try:
                ray.get(actor.pid.remote(), timeout=KILL_S)
            except GetTimeoutError:
                log.error("an actor did not end within %.0f s of being killed", KILL_S)
            except RayError:
                continue  # what is hoped for: it is dead


def _require_listener(address: str) -> None:
    """Refuse at once an address where nobody listens, for which Ray would look for half a minute."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        raise StartupError(
            f"{address!r} is not the address of a Ray cluster: give HOST:PORT of its head (port 6379, not the client's 10001)",
            what="Ray",
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise StartupError(f"no Ray cluster answers at {address}: {error}", what="Ray") from error
