"""The state that the live page shows, as one JSON object. Reads the fleet and the activity; decides nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from router.api import FleetReader, FleetStatus, MemberView
from router.gateway.live.activity import Activity


def live_state(
    fleet: FleetReader, activity: Activity, *, model: str, now_s: float, in_flight: int, draining: bool
) -> dict[str, Any]:
    """Seconds, bytes and tokens throughout; `now_s` is the router's clock, so that ages can be told from `ended_s`."""
    status = fleet.status()
    state = "draining" if draining else "ready" if status.ready else "starting"
    return {
        "now_s": now_s,
        "model": model,
        "state": "reduced" if state == "ready" and status.reduced else state,
        "in_flight": in_flight,
        "threshold_tokens": status.threshold_tokens,
        "generated_tokens": activity.generated_tokens,
        "finished": dict(activity.finished),
        "sites": _sites(status),
        "links": [_link(asdict(link)) for link in status.links],
        "traces": [{**asdict(trace), "stages": dict(trace.stages)} for trace in activity.traces()],
    }


def _sites(status: FleetStatus) -> list[dict[str, Any]]:
    sites: dict[str, list[dict[str, Any]]] = {}
    for member in sorted(status.members, key=lambda member: (member.info.site, member.info.role, member.info.worker_id)):
        sites.setdefault(member.info.site, []).append(_worker(member))
    return [{"name": name, "workers": workers} for name, workers in sites.items()]


def _worker(member: MemberView) -> dict[str, Any]:
    info, load = member.info, member.load
    used = max(0, info.total_blocks - load.free_blocks - load.cached_blocks)
    return {
        "id": info.worker_id,
        "role": info.role,
        "device": info.device,
        "state": _state(member),
        "becomes": member.converting,
        "age_s": member.age_s,
        "running": load.running,
        "max_running": info.max_running,
        "waiting": load.waiting,
        "waiting_prefill_tokens": load.waiting_prefill_tokens,
        "transfers": load.active_transfers,
        "blocks": {"used": used, "cached": load.cached_blocks, "free": load.free_blocks},
        "prefill_tokens_per_s": load.prefill_tokens_per_s,
    }


def _state(member: MemberView) -> str:
    if member.converting is not None:
        return "converting"
    return "healthy" if member.healthy else "draining" if member.load.draining else "gone"


def _link(link: Mapping[str, Any]) -> dict[str, Any]:
    """Use is the share of the capacity that goodput takes; unknown capacity gives none."""
    capacity = link["capacity_bytes_per_s"]
    return {**link, "use": link["goodput_bytes_per_s"] / capacity if capacity else None}
