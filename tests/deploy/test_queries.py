"""Every query of the dashboard and of the rules is PromQL and uses only metrics, series and labels that the code declares."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from prfaas.metrics import ALL, MetricKind

promql = pytest.importorskip("tests.support.promql", reason="promql-parser is not installed", exc_type=ImportError)

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "prfaas.json").read_text())
RULES = [
    rule for group in yaml.safe_load((DEPLOY / "prometheus" / "rules.yaml").read_text())["groups"] for rule in group["rules"]
]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

SCRAPE_LABELS = {"instance", "job", "pod", "component"}


def declared_series() -> dict[str, tuple[set[str], MetricKind, str]]:
    """Series name -> (labels, kind of the metric, suffix)."""
    series = {}
    for metric in ALL:
        labels = set(metric.labels)
        if metric.kind is MetricKind.HISTOGRAM:
            series[f"{metric.name}_bucket"] = (labels | {"le"}, metric.kind, "_bucket")
            series[f"{metric.name}_sum"] = (labels, metric.kind, "_sum")
            series[f"{metric.name}_count"] = (labels, metric.kind, "_count")
        else:
            series[metric.name] = (labels, metric.kind, "")
    return series


def queries() -> list[tuple[str, str]]:
    of_panels = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    of_rules = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in RULES]
    return of_panels + of_rules


@pytest.mark.parametrize(("where", "expression"), queries())
def test_uses_only_what_is_declared(where: str, expression: str) -> None:
    series = declared_series()
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    use = promql.uses(expression)
    assert use.labels, f"{where} looks at nothing"
    for name, labels in use.labels.items():
        if name in recorded:
            continue
        assert name in series, f"{where}: nothing exports {name}"
        known, kind, suffix = series[name]
        unknown = labels - known - SCRAPE_LABELS - {"le"}
        assert not unknown, f"{where}: {name} has no label {sorted(unknown)}"
        if kind is MetricKind.COUNTER or suffix:
            assert use.functions[name] & {"rate", "increase", "irate"}, f"{where}: the counter {name} is shown without a rate"
        else:
            assert not use.functions[name] & {"rate", "increase", "irate"}, f"{where}: a rate of the gauge {name}"


def test_the_parser_catches_what_these_tests_are_for() -> None:
    with pytest.raises(ValueError, match=r".+"):
        promql.uses("sum(rate(x[5m])")
    use = promql.uses('sum by (a) (rate(x{b="1"}[5m])) / on (c) y')
    assert use.labels == {"x": {"a", "b"}, "y": set()}
    assert use.functions["x"] == {"rate"}


def test_the_dashboard_is_complete_and_free_of_overlap() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    cells = [
        (x, y)
        for grid in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels overlap"
    assert max(x for x, _ in cells) < 24, "a panel is wider than the grid"
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in PANELS for target in panel["targets"])


@pytest.mark.parametrize("topic", ["ttft_seconds", "ttft_stage", "inter_token", "generation_tokens", "route_taken", "kv_bytes"])
def test_the_dashboard_covers(topic: str) -> None:
    assert any(topic in target["expr"] for panel in PANELS for target in panel["targets"])


@pytest.mark.parametrize("rule", [rule for rule in RULES if "alert" in rule], ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["action"].endswith(".")
    assert rule["for"]


def test_the_scrape_configuration_loads_the_rules() -> None:
    document = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    assert all((DEPLOY / "prometheus" / name).is_file() for name in document["rule_files"])
    assert [job["job_name"] for job in document["scrape_configs"]] == ["prfaas", "prfaas-kubernetes"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_configuration_and_rules() -> None:
    for check, name in (("config", "prometheus.yaml"), ("rules", "rules.yaml")):
        command = ["promtool", "check", check, str(DEPLOY / "prometheus" / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
