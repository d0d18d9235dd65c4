"""The live page's files, state and stream."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from prfaas.types import LinkView, SiteId
from router.api import FleetStatus
from tests.support.fake_pipeline import REPORT, FakeFleet
from tests.unit.gateway.conftest import Bench


async def test_the_page_asks_for_nothing_from_elsewhere(bench: Bench) -> None:
    page = await bench.client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    wanted = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {"/static/live.css", "/static/live.js"} <= set(wanted)
    for path in wanted:
        if not path.startswith("data:"):
            assert (await bench.client.get(path)).status_code == 200
    script = (await bench.client.get("/static/live.js")).text
    assert "http://" not in script.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in script
    assert "innerHTML" not in script
    assert (await bench.client.get("/static/../page.py")).status_code == 404


async def test_every_element_the_script_uses_is_on_the_page(bench: Bench) -> None:
    page, script = (await bench.client.get("/")).text, (await bench.client.get("/static/live.js")).text
    for name in set(re.findall(r'byId\("([^"]+)"\)', script)):
        assert f'id="{name}"' in page, name


async def test_the_state_shows_fleet_links_and_requests(bench: Bench) -> None:
    await bench.chat()
    state = (await bench.client.get("/live/state")).json()
    assert (state["state"], state["model"], state["threshold_tokens"], state["in_flight"]) == ("ready", "test-model", 2048, 0)
    assert {site["name"]: [worker["id"] for worker in site["workers"]] for site in state["sites"]} == {
        "far": ["prefill-0"],
        "near": ["decode-0"],
    }
    assert state["links"][0]["use"] == pytest.approx(0.4)
    (trace,) = state["traces"]
    assert (trace["route"], trace["worker"], trace["kv_bytes"]) == ("remote", "prefill-0", REPORT.kv_bytes)
    assert sum(trace["stages"].values()) == pytest.approx(trace["ttft_s"])
    assert state["finished"] == {"remote": 1}
    assert state["generated_tokens"] == trace["completion_tokens"]
    assert state["now_s"] >= trace["ended_s"]


async def test_traces_are_bounded_and_newest_first(bench: Bench) -> None:
    for _ in range(45):
        await bench.chat(max_tokens=1)
    last = bench.pipeline.requests[-1].request_id
    state = (await bench.client.get("/live/state")).json()
    assert len(state["traces"]) == 40
    assert state["traces"][0]["request_id"] == last
    assert state["finished"] == {"remote": 45}


async def test_unknown_capacity_has_no_use_and_states_have_names(bench: Bench) -> None:
    bench.fleet.links = (LinkView(SiteId("a"), SiteId("b")),)
    bench.fleet.reduced = True
    state = (await bench.client.get("/live/state")).json()
    assert (state["links"][0]["use"], state["state"]) == (None, "reduced")
    bench.fleet.ready = False
    state = (await bench.client.get("/live/state")).json()
    assert state["state"] == "starting"
    assert {worker["state"] for site in state["sites"] for worker in site["workers"]} == {"gone"}


async def test_the_stream_ends_when_the_router_drains(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.gateway.live.page.EVERY_S", 0.01)
    status, asked = FakeFleet.status, []

    def third_time_drains(fleet: FakeFleet) -> FleetStatus:
        asked.append(fleet)
        if len(asked) == 3:
            bench.gate.drain()
        return status(fleet)

    monkeypatch.setattr(FakeFleet, "status", third_time_drains)
    response = await bench.client.get("/live/events")
    states = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [state["model"] for state in states] == ["test-model"] * 3


class TestWithKeys:
    @pytest.fixture
    def router_settings(self, tmp_path: Path) -> dict[str, Any]:
        (tmp_path / "keys.yaml").write_text(f"keys: [{{name: a, sha256: '{'0' * 64}'}}]")
        return {"api_keys_file": str(tmp_path / "keys.yaml")}

    async def test_the_page_is_open_and_what_it_shows_is_not(self, bench: Bench) -> None:
        assert (await bench.client.get("/")).status_code == 200
        assert (await bench.client.get("/static/live.js")).status_code == 200
        for path in ("/live/state", "/live/events"):
            assert (await bench.client.get(path)).status_code == 401
