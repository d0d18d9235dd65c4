"""`prfaas profile`: the file it writes is one that emulation, plans and the router read. How long things take is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prfaas.cli.profile import profile
from prfaas.engine.emulated_profile import load_emulation
from prfaas.errors import ConfigError
from prfaas.planner.inputs import HardwareInput, ModelInput, load_case, profiled
from tests.support.emulated_hybrid import BLOCK_TOKENS, CACHE, write_profile
from tests.support.served import write_served_model

LENGTHS, BATCHES = (16, 40, 64), (1, 3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("profile")
    out = directory / "profile.json"
    run(directory, out, "16,64,40", "3,1")
    return out


def run(directory: Path, out: Path, lengths: str, batches: str) -> None:
    profile(
        str(write_served_model(directory)),
        lengths=lengths,
        batches=batches,
        repeats=1,
        dtype="auto",
        device="auto",
        threads=0,
        cache_mb=16,
        emulate=write_profile(directory / "emulate.json"),
        seed=0,
        out=str(out),
    )


def test_every_length_and_batch_is_measured(written: Path) -> None:
    hardware = profiled(written, "hardware", HardwareInput)
    assert [tokens for tokens, _ in hardware.prefill_s] == list(LENGTHS)
    assert [batch for batch, _ in hardware.decode_step_s] == list(BATCHES)
    assert all(seconds > 0 for _, seconds in (*hardware.prefill_s, *hardware.decode_step_s))
    assert hardware.max_batch == 3


def test_kv_bytes_are_what_the_model_ships(written: Path) -> None:
    kv = profiled(written, "kv", ModelInput)
    assert list(kv.kv_bytes) == [(tokens, CACHE.request_bytes(tokens)) for tokens in LENGTHS]


def test_an_engine_can_be_emulated_by_it(written: Path) -> None:
    emulation = load_emulation(written)
    assert emulation.model is not None
    assert emulation.model.to_spec("test-model", BLOCK_TOKENS).cache == CACHE
    assert emulation.hardware.to_profile().max_batch == 3


def test_a_plan_names_it_instead_of_copying_it(written: Path) -> None:
    plan = {
        "hardware": [written.name],
        "model": written.name,
        "sites": [
            {"name": "far", "kind": "prefill", "instances": 1, "hardware": "emulated"},
            {"name": "near", "kind": "pd", "instances": 2, "hardware": "emulated"},
        ],
        "workload": "fixed:tokens=64,output=8",
    }
    file = written.parent / "plan.json"
    file.write_text(json.dumps(plan))
    case = load_case(file)
    assert case.pd.hardware == profiled(written, "hardware", HardwareInput).to_profile()
    assert case.model == profiled(written, "kv", ModelInput).to_profile()


def test_a_profile_without_the_part_that_is_needed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'kv'"):
        profiled(write_profile(tmp_path / "p.json"), "kv", ModelInput)


@pytest.mark.parametrize(("lengths", "batches"), [("64", "1,2"), ("64,x", "1,2"), ("16,64", "0,1")])
def test_numbers_that_give_no_curve_are_refused(tmp_path: Path, lengths: str, batches: str) -> None:
    with pytest.raises(ConfigError, match=r"--lengths|--batches"):
        run(tmp_path, tmp_path / "out.json", lengths, batches)
