"""How a worker that is told to finds out its own address."""

from __future__ import annotations

import pytest

from prfaas.cluster.address import outward_address, with_own_address
from prfaas.config import WorkerSettings
from prfaas.errors import ConfigError, StartupError


def settings(host: str, router: str = "127.0.0.1:50051") -> WorkerSettings:
    return WorkerSettings(
        worker_id="w", site="s", role="decode", model="m", served_model_name="m", router_address=router, host=host
    )


def test_an_address_that_was_given_is_kept() -> None:
    assert with_own_address(settings("10.1.2.3")).host == "10.1.2.3"


def test_auto_is_the_address_on_the_way_to_the_router() -> None:
    assert with_own_address(settings("auto")).host == "127.0.0.1"
    assert outward_address("localhost:1") in ("127.0.0.1", "::1")


@pytest.mark.parametrize("target", ["router", "router:", ":1", "router:http"])
def test_a_router_address_without_a_port_is_a_mistake(target: str) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        outward_address(target)


def test_an_unknown_router_is_said_to_be_unreachable() -> None:
    with pytest.raises(StartupError, match=r"no way from here to router\.invalid:1"):
        outward_address("router.invalid:1")
