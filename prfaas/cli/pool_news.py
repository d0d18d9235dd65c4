"""What happened to the workers of a pool between two looks, in words for whoever watches the command."""

from __future__ import annotations

from collections.abc import Sequence

from prfaas.cluster.api import PoolMember


def pool_news(before: Sequence[PoolMember], now: Sequence[PoolMember]) -> tuple[str, ...]:
    """A line for each worker that ended or came back. A worker that ended and was restarted in between tells both."""
    known = {member.worker_id: member for member in before}
    lines = []
    for member in now:
        was = known.get(member.worker_id)
        if was is None:
            continue
        ended = was.alive and (not member.alive or member.restarts > was.restarts)
        if ended:
            status = "" if member.last_status is None else f" with status {member.last_status}"
            lines.append(f"worker {member.worker_id} ended{status}")
        if member.alive and (ended or not was.alive):
            lines.append(f"worker {member.worker_id} was started again ({member.restarts} restarts so far)")
    return tuple(lines)
