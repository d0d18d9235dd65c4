"""Plan files, workloads, traces and overrides: what they become, and what a mistake says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from prfaas.config import DeploymentSettings, validate
from prfaas.errors import ConfigError
from prfaas.planner.cases import paper_case
from prfaas.planner.inputs import load_case, named_case, override_sites, parse_workload
from prfaas.planner.outputs import deployment_file, draw
from prfaas.planner.plan import make_plan
from prfaas.planner.traces import parse

PLAN_FILE = """
name: two-halls
hardware:
  - {name: fast, prefill_s: [[1024, 0.4], [131072, 8.0]], decode_step_s: [[1, 0.02], [32, 0.03]], max_batch: 32}
  - {name: wide, prefill_s: [[1024, 0.8], [131072, 20.0]], decode_step_s: [[1, 0.02], [32, 0.03]], max_batch: 32}
sites:
  - {name: hall-a, kind: prefill, instances: 2, hardware: fast, link_gbps: 10}
  - {name: hall-b, kind: pd, instances: 4, hardware: wide}
model: {name: hybrid, state_bytes: 180000000, bytes_per_token: 17280}
workload: "lognormal:mu=9,sigma=1,output=512"
"""


def test_a_plan_file_becomes_a_case(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN_FILE)
    case = load_case(path)
    assert [s.name for s in case.sites] == ["hall-a"]
    assert case.baseline_pd.instances == 6
    assert case.workload.mean_output_tokens == 512
    assert case.model.kv_bytes(1000) == pytest.approx(180_000_000 + 17_280_000)
    assert make_plan(case, step_tokens=1000, with_sensitivity=False).prfaas.allocation.rates.throughput_rps > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("hardware: wide", "hardware: slow"), "slow"),
        (("kind: pd", "kind: prefill"), "exactly one"),
        (("instances: 4", "instance: 4"), "instance"),
        (("state_bytes: 180000000, bytes_per_token: 17280", ""), "kv_bytes"),
        (("lognormal:mu=9,", "lognormal:"), "mu"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN_FILE.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load_case(path)


def test_unknown_cases_and_sites_are_refused() -> None:
    with pytest.raises(ConfigError, match="paper"):
        named_case("papper")
    with pytest.raises(ConfigError, match="prefill-dc"):
        override_sites(paper_case(), "nowhere=3")
    changed = override_sites(paper_case(), "prefill-dc=6,pd-dc=10")
    assert changed.sites[0].instances == 6
    assert changed.pd.instances == 10


def test_traces_of_both_formats() -> None:
    mooncake = ['{"timestamp": 2500, "input_length": 700, "output_length": 20, "hash_ids": [1, 2]}', ""]
    record = next(iter(parse(mooncake)))
    assert (record.at_s, record.input_tokens, record.output_tokens, record.block_ids) == (2.5, 700, 20, (1, 2))
    burst = ["Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type", "5,ChatGPT,472,18,490,x", "6,x,10,0,10,x"]
    assert [(r.at_s, r.input_tokens, r.output_tokens) for r in parse(burst)] == [(5.0, 472, 18)]
    with pytest.raises(ConfigError, match="line 2"):
        list(parse([mooncake[0], '{"timestamp": 1}']))
    with pytest.raises(ConfigError, match="neither"):
        list(parse(["hello"]))


def test_a_trace_file_is_a_workload(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 100, "output_length": 10}\n' * 3)
    workload = parse_workload(str(path))
    assert workload.lengths.mean == pytest.approx(100)
    assert workload.mean_output_tokens == 10


def test_the_deployment_file_is_valid_and_says_the_plan(tmp_path: Path) -> None:
    plan = make_plan(paper_case(), step_tokens=400, with_sensitivity=False)
    text = deployment_file(plan, model="some/model")
    settings = validate(DeploymentSettings, yaml.safe_load(text))
    assert [(p.role, p.count) for s in settings.sites for p in s.pools] == [("prefill", 4), ("pd_prefill", 3), ("decode", 5)]
    assert settings.router["policy"]["threshold_tokens"] == plan.prfaas.allocation.threshold_tokens


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plan.svg"
    draw(make_plan(paper_case(), step_tokens=1000, with_sensitivity=False), path)
    assert "requests/s" in path.read_text() or path.stat().st_size > 5000
