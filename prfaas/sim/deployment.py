"""Builds a scenario's sites, links and router, and keeps them going: heartbeats, link events, the short loop, samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from prfaas.metrics import Emitter, MetricSet
from prfaas.planner.profile import HardwareProfile
from prfaas.sim.frontdoor import FrontDoor
from prfaas.sim.gaps import Histogram
from prfaas.sim.kernel import Kernel
from prfaas.sim.links import SimLink
from prfaas.sim.model import SimModel, sim_model
from prfaas.sim.paths import Paths
from prfaas.sim.records import Journal
from prfaas.sim.scenario import LinkEvent, Scenario
from prfaas.sim.trip import World
from prfaas.sim.worker import SimWorker
from prfaas.types import Role, SiteId, WorkerId

LOOK_S = 0.25  # how often receivers read what their transfers have moved
TICK_S = 0.5  # of the short loop
HOUSEKEEPING_S = 1.0
BYTES_PER_GBIT = 1e9 / 8


@dataclass(slots=True)
class Deployment:
    """One simulated deployment, ready for requests."""

    scenario: Scenario
    kernel: Kernel
    model: SimModel
    journal: Journal
    gaps: Histogram
    world: World

    @property
    def links(self) -> tuple[SimLink, ...]:
        return tuple(self.world.links.values())

    def of_role(self, role: Role) -> list[SimWorker]:
        return [w for w in self.world.workers.values() if w.role is role]


def deploy(scenario: Scenario) -> Deployment:
    """Build everything at time zero, register the workers and schedule what recurs."""
    kernel, journal, gaps = Kernel(), Journal(), Histogram()
    model = sim_model(scenario.case.model, block_tokens=scenario.engine.block_tokens, grain=scenario.grain)
    fleet, pd = scenario.fleet, SiteId(scenario.fleet.pd.name)
    metrics = MetricSet(Emitter.WORKER)
    workers: dict[WorkerId, SimWorker] = {}

    def add(site: str, role: Role, count: int, hardware: HardwareProfile) -> None:
        for number in range(count):
            worker = SimWorker(
                f"{site}/{role.value}-{number}", site, role, model, hardware, scenario.engine, kernel, metrics, gaps
            )
            workers[worker.info.worker_id] = worker

    for site in fleet.sites:
        add(site.name, Role.PREFILL, site.instances, site.hardware)
    add(fleet.pd.name, Role.PD_PREFILL, fleet.num_prefill, fleet.pd.hardware)
    add(fleet.pd.name, Role.DECODE, fleet.num_decode, fleet.pd.hardware)
    links = {
        (SiteId(s.name), pd): SimLink(kernel, s.link_gbps * BYTES_PER_GBIT, s.rtt_s, scenario.loss_ratio, scenario.lanes)
        for s in fleet.sites
    }
    paths = {
        w: Paths(pd, kernel, progress_timeout_s=scenario.progress_timeout_s)
        for w, worker in workers.items()
        if worker.role is Role.DECODE
    }
    door = FrontDoor(scenario, model, kernel, journal)
    world = World(kernel, door, journal, workers, links, paths, scenario.connect_timeout_s)
    for worker in workers.values():
        door.fleet.register(worker.info)
    made = Deployment(scenario, kernel, model, journal, gaps, world)
    _schedule(made)
    return made


def _schedule(made: Deployment) -> None:
    kernel, scenario = made.kernel, made.scenario
    every(kernel, TICK_S, made.world.door.tick)
    every(kernel, HOUSEKEEPING_S, made.world.door.keep_house)
    every(kernel, LOOK_S, partial(_look, made.world.paths.values()))
    count = len(made.world.workers)
    for number, worker in enumerate(made.world.workers.values()):
        kernel.at(number / count * scenario.heartbeat_s, _Pulse(made, worker).beat)
    for event in scenario.link_events:
        kernel.at(event.at_s, partial(_change_links, made.links, event))


def _look(receivers: Iterable[Paths]) -> None:
    for paths in receivers:
        if paths.busy:
            paths.look()


def _change_links(links: tuple[SimLink, ...], event: LinkEvent) -> None:
    for link in links:
        link.set_conditions(capacity_bytes_per_s=event.gbps * BYTES_PER_GBIT, loss_ratio=event.loss_ratio)


def every(kernel: Kernel, period_s: float, action: Callable[[], object]) -> None:
    """Run an action each `period_s` for ever, from one period on."""

    def again() -> None:
        action()
        kernel.after(period_s, again)

    kernel.after(period_s, again)


class _Pulse:
    """One worker's heartbeats. Those of another site do not get through while its link is down."""

    def __init__(self, made: Deployment, worker: SimWorker) -> None:
        self._made, self._worker = made, worker
        self._paths = made.world.paths.get(worker.info.worker_id)
        self._link = next((link for (src, _), link in made.world.links.items() if src == worker.info.site), None)
        self._period_s = made.scenario.heartbeat_s

    def beat(self) -> None:
        self._made.kernel.after(self._period_s, self.beat)
        if self._link is not None and not self._link.up:
            return
        fleet, info = self._made.world.door.fleet, self._worker.info
        events = self._worker.core.cache.take_events()
        links = self._paths.views() if self._paths is not None else ()
        answer = fleet.heartbeat(info.worker_id, info.incarnation, self._worker.load(), events, links)
        if not answer.known:
            fleet.register(info)
        if not answer.known or answer.resync:
            next_seq, contents = self._worker.core.cache.snapshot_events()
            fleet.put_snapshot(info.worker_id, info.incarnation, next_seq, contents)
