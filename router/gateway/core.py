"""What every endpoint works with: the ports below the gateway and the objects that its requests share."""

from __future__ import annotations

from dataclasses import dataclass

from prfaas.clock import Clock
from prfaas.config import RouterSettings
from prfaas.metrics import MetricSet
from prfaas.text import TextModel
from router.api import FleetReader, Pipeline
from router.gateway.encoder import Encoder
from router.gateway.gate import Gate
from router.gateway.live.activity import Activity


@dataclass(frozen=True, slots=True)
class GatewayCore:
    """Built once by `create_app` and passed to the endpoints."""

    pipeline: Pipeline
    fleet: FleetReader
    text: TextModel
    settings: RouterSettings
    metrics: MetricSet
    clock: Clock
    encoder: Encoder
    gate: Gate
    activity: Activity
