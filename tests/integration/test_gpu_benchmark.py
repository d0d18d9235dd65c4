"""The accelerator's benchmark, as far as it runs without one: its small shape, its arithmetic, and what it says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from benchmarks.gpu import FULL, NO_DEVICE, PAPER_PHI_GBPS, peak_of
from benchmarks.gpu_model import KIMI_LINEAR_48B, RandomCheckpoint, with_layers, work_of
from prfaas.model.load import describe_checkpoint

pytestmark = [pytest.mark.torch, pytest.mark.timeout(120)]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_the_small_shape_measures_every_kind_of_row(tmp_path: Path) -> None:
    found = tmp_path / "gpu.json"
    done = run("--tiny", "--repeats", "1", "--peak-tflops", "0.5", "--json", str(found), "--check")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row["value"] for row in json.loads(found.read_text())["rows"]}
    kinds = {name.partition(" ")[0].partition("(")[0].rstrip(",") for name in rows}
    assert kinds == {"prefill", "MFU", "Phi_kv", "decode"}
    assert all(value > 0 for value in rows.values())
    assert rows["decode, batch 4, context 32"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_it_says_so() -> None:
    done = run()
    assert done.returncode == NO_DEVICE
    assert "no CUDA device" in done.stderr
    assert not done.stdout


def test_the_shape_is_the_published_models() -> None:
    """Sizes from its model card (48B, 3B active) and cache from its configuration: 7 x 576 latents, 20 states."""
    spec = describe_checkpoint(RandomCheckpoint(KIMI_LINEAR_48B, torch.device("cpu"), 1), "m", 64, torch.bfloat16)
    assert spec.num_parameters == pytest.approx(49.1e9, rel=0.005)
    states = 20 * (32 * 128 * 128 * 4 + 3 * 3 * 32 * 128 * 2)
    assert spec.cache.request_bytes(1024) == 7 * 576 * 2 * 1024 + states
    assert FULL.lengths == tuple(PAPER_PHI_GBPS)
    assert work_of(KIMI_LINEAR_48B).weights / 2 == pytest.approx(2.73e9, rel=0.005)  # and 0.38e9 in the head


def test_fewer_layers_keep_their_kinds() -> None:
    linear = with_layers(KIMI_LINEAR_48B, 12)["linear_attn_config"]
    assert linear["full_attn_layers"] == [4, 8, 12]
    assert sorted(linear["full_attn_layers"] + linear["kda_layers"]) == list(range(1, 13))


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA H200", 989.5), ("NVIDIA H20", 148.0), ("NVIDIA H100 80GB HBM3", 989.5), ("cpu", None)]
)
def test_a_devices_peak_is_found_by_its_name(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak
