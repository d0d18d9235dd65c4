"""`prfaas simulate` as a person uses it: JSON on stdout, files, and errors in words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prfaas.cli.app import app
from prfaas.errors import ConfigError

KEYS = {
    "case", "policy", "workload", "rate_rps", "duration_s", "warmup_s", "seed", "slo", "fleet", "requests", "offered_rps",
    "throughput_rps", "goodput_rps", "output_tokens_per_s", "ttft_s", "itl_s", "stages_s", "routes", "utilisation",
    "egress_gbps", "threshold_tokens", "link_changes", "rungs_failed", "cost", "events",
}  # fmt: skip
SHORT = ["simulate", "--duration", "30", "--rate", "1"]


def run(*more: str) -> dict[str, object]:
    result = CliRunner().invoke(app, [*SHORT, *more, "--json", "-"], catch_exceptions=False)
    assert result.exit_code == 0
    found: dict[str, object] = json.loads(result.stdout)
    return found


def test_the_keys_are_the_documented_ones() -> None:
    assert set(run()) == KEYS
    text = (Path(__file__).parents[2] / "docs/simulator.md").read_text()
    assert not [key for key in KEYS if f"`{key}`" not in text]


def test_options_change_what_is_simulated() -> None:
    plain = run()
    assert run("--policy", "homogeneous")["routes"] == {"local": 1.0}
    assert run("--seed", "1")["ttft_s"] != plain["ttft_s"]
    assert run("--rtt-ms", "400")["stages_s"]["wire"]["p99"] > 0.35  # type: ignore[index]
    lossy = run("--loss", "0.0001", "--policy", "naive")["stages_s"]["wire"]["mean"]  # type: ignore[index]
    assert lossy > run("--policy", "naive")["stages_s"]["wire"]["mean"]  # type: ignore[index]
    assert run("--static", "--threshold", "200000")["routes"] == {"local": 1.0}
    assert run("--sites", "prefill-dc=2")["fleet"]["n_prefill_remote"] == 2  # type: ignore[index]
    assert run("--link-events", "0=0")["routes"].get("remote", 0.0) < 0.2  # type: ignore[attr-defined]
    assert run("--ttft-slo", "0.5")["goodput_rps"] < plain["goodput_rps"]  # type: ignore[operator]


def test_a_trace_is_played_at_its_speed(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 4000 * i, "input_length": 2048, "output_length": 8, "hash_ids": [1, 2, 3, 10 + i]} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("--workload", str(path), "--speed", "2")
    assert result["workload"] == "trace"
    assert result["requests"]["finished"] == 12  # type: ignore[index]


def test_what_cannot_be_simulated_is_said() -> None:
    for more in (["--policy", "best"], ["--workload", "nothing"], ["--link-events", "x"]):
        with pytest.raises(ConfigError):
            CliRunner().invoke(app, [*SHORT, *more], catch_exceptions=False)
