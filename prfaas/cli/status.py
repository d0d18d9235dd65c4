"""`prfaas status`: what a router says of itself and of each of its workers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from prfaas.cli.router_api import Health, RouterApi
from prfaas.cli.screen import Screen

COLUMNS = ("worker", "role", "device", "state", "running", "queued", "blocks used", "cached", "transfers", "heard")


def show_status(url: str, key: str | None, *, as_json: bool, screen: Screen) -> int:
    """Print the router's health and its workers; returns the exit status: 0 if it can answer requests."""
    api = RouterApi(url, api_key=key)
    try:
        health = api.health()
        sites = api.sites() if health is not None else ()
    finally:
        api.close()
    if as_json:
        known = {} if health is None else {**asdict(health), "sites": sites}
        print(json.dumps({"url": url, "reachable": health is not None, **known}))
    elif health is None:
        screen.warn(f"no prfaas router answers at {url}")
    else:
        _show(url, health, sites, screen)
    return 0 if health is not None and health.ready else 1


def _show(url: str, health: Health, sites: Sequence[Mapping[str, Any]], screen: Screen) -> None:
    say = screen.done if health.ready else screen.warn
    reduced = " with reduced capacity" if health.reduced else ""
    say(f"{url}: {health.status}{reduced}, model {health.model}, {health.in_flight} requests in flight")
    for site in sites:
        table = Table(*COLUMNS, title=site["name"], title_justify="left", box=None)
        for worker in site["workers"]:
            table.add_row(*_row(worker))
        screen.console.print(table)


def _row(worker: Mapping[str, Any]) -> tuple[str, ...]:
    blocks = worker["blocks"]
    total = max(1, sum(blocks.values()))
    state = f"becomes {worker['becomes']}" if worker["becomes"] else worker["state"]
    return (
        worker["id"],
        worker["role"],
        worker["device"],
        state,
        f"{worker['running']}/{worker['max_running']}",
        f"{worker['waiting']} ({worker['waiting_prefill_tokens']:,} tokens)",
        f"{blocks['used'] / total:.0%}",
        f"{blocks['cached'] / total:.0%}",
        str(worker["transfers"]),
        f"{worker['age_s']:.1f} s ago",
    )
