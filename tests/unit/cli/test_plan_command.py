"""`prfaas plan` as typed: overrides change the answer, mistakes are one line, files are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prfaas.cli.app import app
from prfaas.errors import ConfigError

runner = CliRunner()


def solved(*arguments: str) -> dict[str, dict[str, float]]:
    done = runner.invoke(app, ["plan", "--json", "--step-tokens", "400", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    document: dict[str, dict[str, float]] = json.loads(done.stdout)
    return document


def test_the_paper_and_what_overrides_it() -> None:
    base = solved("--case", "paper")["prfaas"]
    assert base["throughput_rps"] == pytest.approx(3.24, rel=0.01)
    assert solved("--link-gbps", "5")["prfaas"]["throughput_rps"] < base["throughput_rps"]
    assert solved("--sites", "prefill-dc=6,pd-dc=12")["prfaas"]["n_prefill_remote"] == 6
    assert solved("--output-tokens", "2048")["prfaas"]["throughput_rps"] < base["throughput_rps"]
    assert solved("--workload", "fixed:tokens=4096,output=256")["prfaas"]["throughput_rps"] > base["throughput_rps"]
    assert solved("--ttft-slo", "3")["prfaas"]["throughput_at_slo_rps"] < base["throughput_at_slo_rps"]
    priced = solved("--price-prefill", "30", "--price-pd", "10", "--price-egress", "0.02")["prfaas"]["cost"]
    assert priced["per_million_tokens"] > 0  # type: ignore[index]
    assert priced["egress_per_hour"] > 0  # type: ignore[index]


def test_mistakes_say_what_to_change() -> None:
    for arguments, message in (
        (["--case", "papper"], "papper"),
        (["--sites", "nowhere=2"], "nowhere"),
        (["--workload", "lognormal:mu=9"], "sigma"),
    ):
        done = runner.invoke(app, ["plan", *arguments])
        assert isinstance(done.exception, ConfigError)
        assert message in done.exception.message


def test_a_table_a_picture_and_a_deployment_file(tmp_path: Path) -> None:
    picture, cluster = tmp_path / "plan.svg", tmp_path / "cluster.yaml"
    arguments = ["plan", "--step-tokens", "800", "--cluster-file", str(cluster)]
    pytest.importorskip("matplotlib")
    done = runner.invoke(app, [*arguments, "--plot", str(picture)], catch_exceptions=False)
    assert "homogeneous" in done.output
    assert picture.stat().st_size > 1000
    assert "threshold_tokens" in cluster.read_text()
