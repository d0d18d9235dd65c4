"""API keys: who gets in, to what, how fast, and that the file may change underneath."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prfaas.clock import ManualClock
from prfaas.errors import ConfigError, RateLimited, Unauthenticated
from router.gateway.keys import CHECK_EVERY_S, Keys
from router.gateway.rates import Bucket
from tests.support.http_server import served_gateway
from tests.unit.gateway.conftest import Bench

AUTH = {"authorization": "Bearer secret-a"}


def entry(name: str, key: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **fields}


def write_keys(path: Path, *entries: dict[str, Any], stamp_s: int = 1) -> Path:
    path.write_text(yaml.safe_dump({"keys": list(entries)}))
    os.utime(path, (stamp_s, stamp_s))
    return path


def headers(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


class TestOverHttp:
    @pytest.fixture
    def router_settings(self, tmp_path: Path) -> dict[str, Any]:
        anna = entry("anna", "secret-a", models=["test-model"], priority=-7, tokens_per_minute=60, requests_per_minute=600)
        root = entry("root", "secret-c", admin=True)
        return {
            "api_keys_file": str(write_keys(tmp_path / "keys.yaml", anna, entry("bert", "secret-b", models=["other"]), root))
        }

    async def test_no_key_no_service(self, bench: Bench) -> None:
        for bad in ({}, {"authorization": "Bearer nope"}, {"authorization": "Basic secret-a"}, {"x-api-key": "nope"}):
            response = await bench.client.post("/v1/chat/completions", json={}, headers=bad)
            assert (response.status_code, response.json()["error"]["type"]) == (401, "authentication_error")
        anthropic = await bench.client.post("/v1/messages", json={})
        assert anthropic.json()["error"]["type"] == "authentication_error"
        assert (await bench.client.get("/v1/models")).status_code == 401
        assert bench.metric("prfaas_requests_total", outcome="rejected", reason="invalid_api_key") == 5

    async def test_probes_need_no_key(self, bench: Bench) -> None:
        assert (await bench.client.get("/health")).status_code == 200
        assert (await bench.client.get("/metrics")).status_code == 200

    async def test_only_an_admin_looks_at_the_service(self, bench: Bench) -> None:
        for path in ("/live/state", "/live/events"):
            assert (await bench.client.get(path)).status_code == 401
            refused = await bench.client.get(path, headers=AUTH)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert (await bench.client.get("/live/state", headers={"x-api-key": "secret-c"})).status_code == 200

    async def test_both_headers_and_what_the_key_decides(self, bench: Bench) -> None:
        for auth in (AUTH, {"x-api-key": "secret-a"}):
            bench.client.headers = auth  # type: ignore[assignment]
            assert (await bench.client.get("/v1/models")).status_code == 200
        await bench.chat(user="somebody else", priority=2)
        sent = bench.pipeline.requests[0]
        assert (sent.tenant, sent.priority) == ("anna", -5)

    async def test_models_are_per_key(self, bench: Bench) -> None:
        bench.client.headers = {"x-api-key": "secret-b"}  # type: ignore[assignment]
        response = await bench.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")
        assert bench.pipeline.requests == []

    async def test_tokens_are_charged_and_then_waited_for(self, bench: Bench) -> None:
        bench.client.headers = AUTH  # type: ignore[assignment]
        statuses = []
        for _ in range(3):
            response = await bench.chat()
            statuses.append(response.status_code)
        assert statuses == [200, 200, 429]
        assert "tokens per minute" in response.json()["error"]["message"]
        assert 1 <= int(response.headers["retry-after"]) <= 60

    async def test_refused_bodies_cost_no_tokens(self, bench: Bench) -> None:
        bench.client.headers = AUTH  # type: ignore[assignment]
        for _ in range(5):
            assert (await bench.chat(temperature=9)).status_code == 400
        assert (await bench.chat()).status_code == 200


def test_reachable_addresses_need_keys_or_a_word(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="api_keys_file"),
        served_gateway(tmp_path, host="0.0.0.0"),  # the address the settings name; nothing binds it
    ):
        pass
    with served_gateway(tmp_path, host="0.0.0.0", require_auth=False) as served:
        assert served.url


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock, path = ManualClock(), tmp_path / "keys.yaml"
    keys = Keys(write_keys(path, entry("anna", "a", requests_per_minute=1), entry("bert", "b")), clock)
    keys.caller(headers("a")).admit()
    write_keys(path, entry("anna", "a", requests_per_minute=1), entry("carl", "c"), stamp_s=2)
    clock.advance(CHECK_EVERY_S)
    assert keys.caller(headers("c")).entry.name == "carl"
    with pytest.raises(Unauthenticated):
        keys.caller(headers("b"))
    with pytest.raises(RateLimited, match="requests per minute"):
        keys.caller(headers("a")).admit()  # what was used stays used
    path.write_text("keys: [{name: x}]")
    clock.advance(CHECK_EVERY_S)
    assert keys.caller(headers("c")).entry.name == "carl"
    assert "stay in force" in caplog.text
    path.unlink()
    clock.advance(CHECK_EVERY_S)
    assert keys.caller(headers("c")).entry.name == "carl"


def test_bad_files_are_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    with pytest.raises(ConfigError, match="cannot read"):
        Keys(path, ManualClock())
    for bad in (entry("a", "k") | {"sha256": "xyz"}, entry("a", "k") | {"colour": 1}):
        with pytest.raises(ConfigError, match="wrong"):
            Keys(write_keys(path, bad), ManualClock())
    with pytest.raises(ConfigError, match="twice"):
        Keys(write_keys(path, entry("a", "k"), entry("b", "k")), ManualClock())


def test_egress_is_a_budget(tmp_path: Path) -> None:
    clock = ManualClock()
    keys = Keys(write_keys(tmp_path / "k.yaml", entry("anna", "a", egress_bytes_per_minute=600)), clock)
    caller = keys.caller(headers("a"))
    caller.admit()
    caller.charge(tokens=5, egress_bytes=1200)
    with pytest.raises(RateLimited, match="egress bytes") as caught:
        caller.admit()
    assert caught.value.retry_after_s == pytest.approx(60.1)
    clock.advance(61)
    caller.admit()


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 500)), max_size=20),
)
def test_no_minute_gives_more_than_two_minutes_worth(per_minute: int, steps: list[tuple[float, float]]) -> None:
    now_s, spent, bucket = 0.0, 0.0, Bucket(per_minute, 0.0)
    for wait_s, amount in steps:
        now_s += wait_s
        if bucket.wait_s(amount, now_s) == 0:
            amount = min(amount, per_minute)
            bucket.spend(amount, now_s)
            spent += amount
    assert spent <= per_minute + now_s * per_minute / 60 + 1e-6
    wait_s = bucket.wait_s(per_minute, now_s)
    assert bucket.wait_s(per_minute, now_s + wait_s) == pytest.approx(0, abs=1e-6)
