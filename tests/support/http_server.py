"""A gateway on a loopback socket, for clients that need one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from prfaas.clock import MonotonicClock
from prfaas.config import RouterSettings
from prfaas.metrics import Emitter, MetricSet
from prfaas.text import load_text_model
from router.gateway.app import create_app
from router.gateway.gate import Gate
from router.http_protocol import GuardedHttpProtocol
from tests.support.fake_pipeline import FakeFleet, FakePipeline
from tests.support.text_models import write_text_model


@dataclass(slots=True)
class ServedGateway:
    """`url` ends without /v1."""

    url: str
    pipeline: FakePipeline
    fleet: FakeFleet
    metrics: MetricSet
    gate: Gate


@contextmanager
def served_gateway(directory: Path, *, text_model: Path | None = None, **settings: Any) -> Iterator[ServedGateway]:
    """Serve on a free port in a thread until the block ends; open requests are then given a second."""
    text = load_text_model(str(text_model or write_text_model(directory / "text-model")))
    merged = {"model": "unused", "served_model_name": "test-model", "default_max_tokens": 64, **settings}
    checked = RouterSettings.model_validate(merged)
    metrics = MetricSet(Emitter.ROUTER)
    pipeline, fleet = FakePipeline(text), FakeFleet()
    gate = Gate(checked.limits.max_in_flight, metrics)
    app = create_app(
        pipeline=pipeline, fleet=fleet, text=text, settings=checked, metrics=metrics, clock=MonotonicClock(), gate=gate
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http=GuardedHttpProtocol,
            host="127.0.0.1",
            port=0,
            log_level="warning",
            timeout_graceful_shutdown=1,
            access_log=False,
        )
    )
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    try:
        port = _port_of(server, thread)
        yield ServedGateway(f"http://127.0.0.1:{port}", pipeline, fleet, metrics, gate)
    finally:
        server.should_exit = True
        thread.join(10)
    assert not thread.is_alive(), "the server did not stop"


def _port_of(server: uvicorn.Server, thread: threading.Thread) -> int:
    for _ in range(1000):
        if server.started:
            return int(server.servers[0].sockets[0].getsockname()[1])
        thread.join(0.01)
        if not thread.is_alive():
            break
    raise RuntimeError("the server did not start")
