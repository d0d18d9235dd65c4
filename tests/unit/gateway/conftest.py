"""A gateway over a scripted pipeline, called in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import settings as hypothesis_settings

from prfaas.clock import MonotonicClock
from prfaas.config import RouterSettings
from prfaas.metrics import Emitter, MetricSet
from prfaas.text import TextModel, load_text_model
from router.gateway.app import create_app
from router.gateway.gate import Gate
from tests.support.fake_pipeline import FakeFleet, FakePipeline
from tests.support.text_models import write_text_model

# Property tests here are about what comes out, not how fast: a busy machine must not fail them.
hypothesis_settings.register_profile("no-deadline", deadline=None)
hypothesis_settings.load_profile("no-deadline")


@dataclass(slots=True)
class Bench:
    """Everything a gateway test touches."""

    app: FastAPI
    pipeline: FakePipeline
    fleet: FakeFleet
    text: TextModel
    metrics: MetricSet
    gate: Gate
    client: httpx.AsyncClient

    async def chat(self, **fields: Any) -> httpx.Response:
        body = {"model": "test-model", "messages": [{"role": "user", "content": "What is the capital of France?"}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)

    async def complete(self, **fields: Any) -> httpx.Response:
        return await self.client.post("/v1/completions", json={"model": "test-model", "prompt": "The capital", **fields})

    def metric(self, name: str, **labels: str) -> float:
        value = self.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    directory: Path = tmp_path_factory.mktemp("text-model")
    return load_text_model(str(write_text_model(directory)))


@pytest.fixture
def router_settings() -> dict[str, Any]:
    """Overridden by tests that need other settings."""
    return {}


@pytest.fixture
async def bench(text: TextModel, router_settings: dict[str, Any]) -> AsyncIterator[Bench]:
    settings = RouterSettings.model_validate(
        {"model": "unused", "served_model_name": "test-model", "default_max_tokens": 64, **router_settings}
    )
    metrics = MetricSet(Emitter.ROUTER)
    pipeline, fleet = FakePipeline(text), FakeFleet()
    gate = Gate(settings.limits.max_in_flight, metrics)
    app = create_app(
        pipeline=pipeline, fleet=fleet, text=text, settings=settings, metrics=metrics, clock=MonotonicClock(), gate=gate
    )
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield Bench(app, pipeline, fleet, text, metrics, gate, client)
