"""A gateway over a scripted pipeline, and the official OpenAI client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.fake_pipeline import Script
from tests.support.http_server import ServedGateway, served_gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    with served_gateway(tmp_path_factory.mktemp("gateway")) as served:
        yield served


@pytest.fixture
def client(gateway: ServedGateway) -> Iterator[OpenAI]:
    """Starts every test with the pipeline's usual answer."""
    gateway.pipeline.script = Script()
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=20) as client:
        yield client
