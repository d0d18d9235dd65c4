"""The router's pipeline with its parts, as main builds it, less the HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prfaas import metrics as m
from prfaas.clock import MonotonicClock
from prfaas.config import AdmissionSettings, PolicySettings, TlsSettings
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import GenerationRequest
from router.api import PipelineEvent
from router.clients import DecodeClients
from router.door import Door
from router.fleet import Fleet
from router.pipeline import RoutedPipeline
from router.policy.threshold import ThresholdPolicy
from router.policy.view import Tuning
from tests.support.router_fleet import MODEL, ScriptedDecode, worker_info


class Router:
    """A pipeline with its parts, as main builds it, less the HTTP."""

    def __init__(self, settings: PolicySettings, admission: AdmissionSettings) -> None:
        self.metrics = MetricSet(Emitter.ROUTER)
        clock = MonotonicClock()
        tuning = Tuning(settings.threshold_tokens)
        self.fleet = Fleet(clock=clock, metrics=self.metrics, member_timeout_s=60.0, tuning=tuning)
        self.clients = DecodeClients(TlsSettings())
        slo_s = settings.ttft_slo_s
        self.door = Door(fleet=self.fleet, settings=admission, slo_s=slo_s, metrics=self.metrics, clock=clock)
        self.pipeline = RoutedPipeline(
            fleet=self.fleet,
            policy=ThresholdPolicy(settings),
            clients=self.clients,
            door=self.door,
            model=MODEL,
            metrics=self.metrics,
            clock=clock,
        )

    def join(self, worker: ScriptedDecode, name: str, **changes: object) -> None:
        self.fleet.register(worker_info(name, address=worker.address, **changes))

    async def collect(self, request: GenerationRequest) -> list[PipelineEvent]:
        return [event async for event in self.pipeline.generate(request)]

    def count(self, metric: m.Metric, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(metric.name, labels) or 0.0

    def assert_nothing_left(self) -> None:
        assert self.fleet.num_dispatched == 0
        view = self.fleet.view()
        workers = [*view.decode, *(w for site in view.prefill.values() for w in site)]
        assert all(w.queued_tokens == 0 and w.running == 0 for w in workers)


@asynccontextmanager
async def router(admission: AdmissionSettings | None = None, **settings: object) -> AsyncIterator[Router]:
    policy = PolicySettings(**{"threshold_tokens": 2048, **settings})  # type: ignore[arg-type]
    made = Router(policy, admission or AdmissionSettings())
    ticking = asyncio.create_task(made.door.run())
    try:
        yield made
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
        await made.clients.close()
