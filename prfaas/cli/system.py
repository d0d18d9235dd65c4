"""A whole system on this machine: one router process and one driver process per site group, started and ended in order."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from prfaas.artifacts import ResolvedModel
from prfaas.cli.deployment import drivers, router_settings
from prfaas.cli.ports import free_port, require_free
from prfaas.cli.router_api import Health, RouterApi
from prfaas.cli.run_directory import RunDirectory
from prfaas.clock import Clock, MonotonicClock
from prfaas.cluster.keeper import Keeper
from prfaas.cluster.lifeline import Lifeline
from prfaas.config import DeploymentSettings, RouterSettings
from prfaas.errors import StartupError

POLL_S = 0.1
HOPELESS_RESTARTS = 3  # a worker that was started this often without registering will not get better
REFUSED = 2  # the status of a program that cannot run as it was told to, and will not next time either
FIRM_S = 3.0  # what a driver gets to end its workers firmly
WORKER_DRAIN_S = 5.0
ANY_HOST = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the router listens: HTTP for clients, gRPC for workers."""

    http: str
    grpc: str


class System:
    """Starts everything a deployment names, watches it, and ends it. Children never outlive this process."""

    def __init__(
        self,
        deployment: DeploymentSettings,
        model: ResolvedModel,
        run: RunDirectory,
        *,
        say: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        self._deployment = deployment.model_copy(update={"model": model.source, "served_model_name": model.served_name})
        self._run = run
        self._say = say
        self._clock = clock or MonotonicClock()
        self.router = self._router_settings(model)
        self.endpoints = _endpoints(self.router)
        self.api = RouterApi(self.endpoints.http, clock=self._clock)
        self._lifeline = Lifeline()
        self._router = Keeper(
            "router", self._router_command(), lifeline=self._lifeline, log_file=run.log_file("router"), clock=self._clock
        )
        self._drivers = [self._driver([site.name for site in group]) for group in drivers(self._deployment)]
        self._started: list[Keeper] = []

    def start(self) -> None:
        """Start the router, then the drivers. Raises StartupError when a port is taken or a program cannot start."""
        require_free(self.router.host, self.router.port, "--port")
        for keeper in (self._router, *self._drivers):
            keeper.start()
            self._started.append(keeper)

    def wait_ready(self) -> Health:
        """Block until every worker has registered, saying who did.

        Raises StartupError when that takes longer than `ready_timeout_s`, or when a process keeps failing or refuses
        its settings; the message
        carries the end of its log.
        """
        expected = Counter[str]()
        for site in self._deployment.sites:
            for pool in site.pools:
                expected[pool.role] += pool.count
        seen: Counter[str] = Counter()
        deadline_s = self._clock.now_s() + self._deployment.ready_timeout_s
        while True:
            health = self.api.health()
            if health is not None:
                self._say_news(health, seen, expected)
                if health.ready and all(health.healthy(role) >= count for role, count in expected.items()):
                    return health
            self._raise_if_hopeless()
            if self._clock.now_s() > deadline_s:
                missing = [f"{role} ({seen[role]} of {count})" for role, count in expected.items() if seen[role] < count]
                raise StartupError(
                    f"after {self._deployment.ready_timeout_s:.0f} s not every worker has registered: {', '.join(missing)}. "
                    f"Logs are in {self._run.path}",
                    what="workers",
                    waited_s=self._deployment.ready_timeout_s,
                )
            time.sleep(POLL_S)

    def close(self, hurried: Callable[[], bool]) -> None:
        """End the router, which lets its requests finish, then the workers. `hurried()` turning true makes it firm."""
        self.api.close()
        started, self._started = self._started, []
        self._end([k for k in started if k is self._router], self.router.drain_timeout_s, hurried)
        self._end([k for k in started if k is not self._router], WORKER_DRAIN_S + FIRM_S, hurried)
        self._lifeline.close()

    def _end(self, keepers: list[Keeper], drain_s: float, hurried: Callable[[], bool]) -> None:
        for keeper in keepers:
            keeper.ask_to_stop()
        deadline_s = self._clock.now_s() + drain_s
        hurrying = False
        while any(keeper.state().alive for keeper in keepers) and self._clock.now_s() < deadline_s:
            if hurried() and not hurrying:
                hurrying = True
                deadline_s = min(deadline_s, self._clock.now_s() + FIRM_S)
                for keeper in keepers:
                    keeper.ask_to_stop()
            time.sleep(POLL_S / 2)
        for keeper in keepers:
            keeper.finish(deadline_s)

    def _say_news(self, health: Health, seen: Counter[str], expected: Counter[str]) -> None:
        for role, count in expected.items():
            now = min(count, health.healthy(role))
            if now > seen[role]:
                self._say(f"{role.replace('_', '-')} worker {now} of {count} registered")
                seen[role] = now

    def _raise_if_hopeless(self) -> None:
        states = [(keeper.name, keeper.state()) for keeper in (self._router, *self._drivers)]
        ends = [(name, state.restarts, state.last_status) for name, state in states]
        ends += [(member.worker_id, member.restarts, member.last_status) for member in self._run.read_members()]
        failing = [name for name, restarts, status in ends if restarts >= HOPELESS_RESTARTS or status == REFUSED]
        if failing:
            name = failing[0]
            raise StartupError(
                f"{name} cannot start. The end of {self._run.log_file(name)}:\n{self._run.tail(name)}", what=name
            )

    def _router_settings(self, model: ResolvedModel) -> RouterSettings:
        """The router's settings with both ports chosen: the drivers must know them before the router tells."""
        settings = router_settings(self._deployment, source=model.source, served_name=model.served_name)
        return settings.model_copy(
            update={
                "port": settings.port or free_port(settings.host),
                "grpc_port": settings.grpc_port or free_port(settings.grpc_host),
            }
        )

    def _router_command(self) -> tuple[str, ...]:
        file = self._run.write_settings("router", self.router.model_dump_json())
        return (sys.executable, "-m", "router", "--settings", str(file))

    def _driver(self, names: list[str]) -> Keeper:
        file = self._run.write_settings("deployment", self._deployment.model_dump_json())
        name = "site-" + "+".join(names)
        command = [sys.executable, "-m", "prfaas.cli", "up", "--site", str(file), "--router", self.endpoints.grpc]
        command += [part for site in names for part in ("--only", site)]
        command += ["--run-directory", str(self._run.path), "--name", name]
        return Keeper(name, command, lifeline=self._lifeline, log_file=self._run.log_file(name), clock=self._clock)


def _endpoints(router: RouterSettings) -> Endpoints:
    def join(host: str, port: int) -> str:
        reachable = ANY_HOST.get(host, host)
        return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"

    return Endpoints(f"http://{join(router.host, router.port)}", join(router.grpc_host, router.grpc_port))
