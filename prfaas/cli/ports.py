"""TCP ports of this machine: is one free, and which one is."""

from __future__ import annotations

import socket

from prfaas.errors import StartupError


def free_port(host: str) -> int:
    """A port that is free now. Whoever needs it should bind it soon."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


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
