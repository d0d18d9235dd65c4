"""What Linux knows of this process's TCP connections: TCP_INFO, read from the outside. Zeros on other systems.

gRPC does not lend out its sockets, but they are file descriptors of this process: each is duplicated, asked for its
peer and its TCP_INFO, and the duplicate is closed. The connection itself is not touched.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from kv_transport.messages import PathStats

_DESCRIPTORS = "/proc/self/fd"
_INFO_BYTES = 256
UNSENT_BYTES = 256 * 1024  # about one scheduling delay at 10 Gbps
MAX_REMEMBERED = 4096  # connections; the oldest is forgotten
# Offsets in linux/tcp.h's struct tcp_info; new kernels append, they do not move fields.
_PMTU = struct.Struct("<60xI")
_RTT_US = struct.Struct("<68xI")  # smoothed, queues and delayed acknowledgements included
_MIN_RTT_US = struct.Struct("<148xI")  # the smallest of the last minutes: the path itself
_BYTES_SENT = struct.Struct("<200xQ")
_BYTES_RETRANSMITTED = struct.Struct("<208xQ")

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Connection:
    """One established TCP connection of this process. `peer` is "host:port" of the far end."""

    peer: str
    rtt_s: float  # the smallest of the last minutes, before Linux 4.6 the smoothed one
    path_mtu_bytes: int
    sent_bytes: int  # retransmissions included; 0 before Linux 4.19
    retransmitted_bytes: int


def plain_peer(grpc_peer: str) -> str:
    """gRPC's "ipv4:1.2.3.4:5" or "ipv6:%5B::1%5D:5" as "host:port"."""
    return grpc_peer.partition(":")[2].replace("%5B", "").replace("%5D", "")


def connections(peers: Collection[str]) -> list[Connection]:
    """The connections to these far ends; empty where the system does not tell."""
    return _visit(peers, _read)


def limit_unsent(peers: Collection[str], unsent_bytes: int) -> int:
    """Let the kernel queue at most `unsent_bytes` beyond the congestion window on the connections to these far ends.

    What waits in a send buffer cannot go over another lane any more: on a lossy path megabytes there would keep a
    transfer waiting for its slowest lane. Returns how many connections were set; 0 where the system has no such option.
    """

    def limit(end: socket.socket, peer: str) -> str:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent_bytes)
        return peer

    return len(_visit(peers, limit)) if sys.platform == "linux" else 0


def _visit(peers: Collection[str], act: Callable[[socket.socket, str], ResultT]) -> list[ResultT]:
    wanted = set(peers)
    if not wanted or not os.path.isdir(_DESCRIPTORS):
        return []
    results = []
    for name in os.listdir(_DESCRIPTORS):
        try:
            if not os.readlink(f"{_DESCRIPTORS}/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as end:
                peer = _peer(end)
                if peer in wanted:
                    results.append(act(end, peer))
        except (OSError, ValueError):
            continue  # closed meanwhile, or not connected
    return results


def _peer(end: socket.socket) -> str:
    if end.family not in (socket.AF_INET, socket.AF_INET6) or end.type != socket.SOCK_STREAM:
        return ""
    host, port = end.getpeername()[:2]
    return f"{host}:{port}".removeprefix("::ffff:")


def _read(end: socket.socket, peer: str) -> Connection:
    info = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)

    def field(layout: struct.Struct) -> int:
        return int(layout.unpack_from(info)[0]) if len(info) >= layout.size else 0

    rtt_s = (field(_MIN_RTT_US) or field(_RTT_US)) / 1e6
    return Connection(peer, rtt_s, field(_PMTU), field(_BYTES_SENT), field(_BYTES_RETRANSMITTED))


class PathLedger:
    """Reports every sent and retransmitted byte of every connection once, to whoever asks first about its peer."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int]] = {}

    def meet(self, peer: str) -> None:
        """A lane runs over the connection to this peer: keep its send queue short, once."""
        if peer and peer not in self._told:
            limit_unsent([peer], UNSENT_BYTES)
            self._told[peer] = (0, 0)

    def take(self, peers: Collection[str]) -> PathStats:
        """Figures of the connections to these peers since they were last taken, and the smallest round trip."""
        rtt_s, sent, retransmitted = 0.0, 0, 0
        for connection in connections(peers):
            before_sent, before_retransmitted = self._told.get(connection.peer, (0, 0))
            if before_sent > connection.sent_bytes:  # another connection from the same port
                before_sent = before_retransmitted = 0
            sent += connection.sent_bytes - before_sent
            retransmitted += connection.retransmitted_bytes - before_retransmitted
            self._told[connection.peer] = (connection.sent_bytes, connection.retransmitted_bytes)
            while len(self._told) > MAX_REMEMBERED:
                self._told.pop(next(iter(self._told)))
            if connection.rtt_s > 0:
                rtt_s = min(rtt_s or connection.rtt_s, connection.rtt_s)
        return PathStats(rtt_s, sent, retransmitted)
