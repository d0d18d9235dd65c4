"""The address under which others reach this machine, for workers that are told to find it out where they run."""

from __future__ import annotations

import socket

from prfaas.config import WorkerSettings
from prfaas.errors import ConfigError, StartupError

AUTO_HOST = "auto"


def with_own_address(settings: WorkerSettings) -> WorkerSettings:
    """Replace a `host` of "auto" by this machine's address on its way to the router; other hosts stay.

    Raises ConfigError for a router address without a port, StartupError when there is no way to the router.
    """
    if settings.host != AUTO_HOST:
        return settings
    return settings.model_copy(update={"host": outward_address(settings.router_address)})


def outward_address(target: str) -> str:
    """This machine's address on the interface that leads to `target` (host:port). Sends nothing."""
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"{target!r} is not of the form host:port")
    try:
        family, kind, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise StartupError(f"there is no way from here to {target}: {error}", what=target) from error
