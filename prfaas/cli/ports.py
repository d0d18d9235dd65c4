"""TCP ports of this machine: is one free, and which one is."""

from __future__ import annotations

import random
import socket

from prfaas.errors import StartupError

# Below the ports that systems give to outgoing connections (from 32,768 on Linux, 49,152 elsewhere), one of which may be taken
# between being found free and being bound; above those that Ray gives to its workers.
_QUIET_PORTS = range(20_000, 32_768)
_ATTEMPTS = 64


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is free now. Whoever needs it should bind it soon. Raises StartupError when none is found."""
    for port in random.sample(_QUIET_PORTS, _ATTEMPTS):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port
    raise StartupError(f"found no free port at {host}: is it an address of this machine?", what=host)


def require_free(host: str, port: int, flag: str) -> None:
    """Raise StartupError, naming the flag to change, if something else listens on the port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port} ({error.strerror}). Choose another port: {flag} {free_port(host)}", what=flag
            ) from error
