"""Both transports are held to the suite that ships with the package."""

from __future__ import annotations

import pytest

from kv_transport.testing.harness import GrpcHarness, Harness, MemoryHarness
from kv_transport.testing.suite import CHECKS, Check


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("harness", [GrpcHarness(), MemoryHarness()], ids=["grpc", "memory"])
async def test_transport_conforms(harness: Harness, check: Check) -> None:
    await check(harness)
