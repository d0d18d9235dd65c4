"""`prfaas status`: what a router says of itself."""

from __future__ import annotations

import json
from dataclasses import asdict

from prfaas.cli.router_api import RouterApi
from prfaas.cli.screen import Screen


def show_status(url: str, key: str | None, *, as_json: bool, screen: Screen) -> int:
    """Print the router's health; returns the exit status: 0 if it can answer requests."""
    api = RouterApi(url, api_key=key)
    try:
        health = api.health()
    finally:
        api.close()
    if as_json:
        print(json.dumps({"url": url, "reachable": health is not None, **(asdict(health) if health is not None else {})}))
    elif health is None:
        screen.warn(f"no prfaas router answers at {url}")
    else:
        say = screen.done if health.ready else screen.warn
        say(f"{url}: {health.status}{' with reduced capacity' if health.reduced else ''}, model {health.model}")
        for kind, count in sorted(health.workers.items()):
            role, _, state = kind.partition(":")
            screen.step(f"{count} {role.replace('_', '-')} worker{'s' if count != 1 else ''} {state}")
        screen.step(f"{health.in_flight} requests in flight")
    return 0 if health is not None and health.ready else 1
