"""Settings: where each value comes from, and that every mistake is named as its author wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prfaas.config import DeploymentSettings, RouterSettings, WorkerSettings, environment_layer, read_yaml, resolve, validate
from prfaas.errors import ConfigError

ROUTER = {"model": "m", "served_model_name": "m"}


def test_flags_win_over_variables_and_variables_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("model: m\nserved_model_name: m\npolicy: {threshold_tokens: 1, inline_tokens: 2, max_candidates: 3}\n")
    environ = {"PRFAAS_POLICY__THRESHOLD_TOKENS": "10", "PRFAAS_POLICY__INLINE_TOKENS": "20"}
    settings = resolve(RouterSettings, file=file, environ=environ, flags={"policy": {"threshold_tokens": 100}})
    assert (settings.policy.threshold_tokens, settings.policy.inline_tokens, settings.policy.max_candidates) == (100, 20, 3)


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"prot": 1}, "router.prot: there is no such setting; did you mean port?"),
        (
            {"policy": {"treshold_tokens": 1}},
            "router.policy.treshold_tokens: there is no such setting; did you mean threshold_",
        ),
        ({"admission": {"tenants": {"acme": {"burst": 1}}}}, "router.admission.tenants.acme.burst: there is no such setting;"),
        ({"zzz": 1}, "router.zzz: there is no such setting"),
        ({"port": 70_000}, "router.port: Input should be less than or equal to 65535"),
    ],
)
def test_a_mistake_is_named_by_its_whole_path(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(RouterSettings, {**ROUTER, **wrong}, at="router")
    assert line in str(caught.value)


def test_a_suggestion_comes_from_the_class_the_key_was_meant_for() -> None:
    site = {"name": "a", "pools": [{"role": "decode", "engine": {"block_token": 1}}]}
    with pytest.raises(ConfigError, match=r"sites\.0\.pools\.0\.engine\.block_token: .*did you mean block_tokens\?"):
        validate(DeploymentSettings, {"model": "m", "sites": [site]})


def test_no_suggestion_for_a_key_that_resembles_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(RouterSettings, {**ROUTER, "zzz": 1})
    assert "did you mean" not in str(caught.value)


def test_every_mistake_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(WorkerSettings, {"worker_id": "w", "role": "cook"})
    assert all(key in str(caught.value) for key in ("site", "role", "model", "router_address"))


def test_a_variable_that_is_no_yaml_is_an_error_with_its_name() -> None:
    with pytest.raises(ConfigError, match="PRFAAS_ROUTER__PORT is not YAML"):
        environment_layer({"PRFAAS_ROUTER__PORT": "["})


@pytest.mark.parametrize("content", [b'model: "\xff\xfe"\n', b"sites: [\n", b"- a\n"])
def test_a_file_that_is_no_mapping_in_utf8_yaml_is_an_error_with_its_name(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.yaml"):
        read_yaml(file)
