"""The factory: which backend settings choose, what it refuses, and that emulation stays free of torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from prfaas.clock import MonotonicClock
from prfaas.config import EngineSettings
from prfaas.engine.api import Finished, TokensOut
from prfaas.engine.factory import build_engine, device_of
from prfaas.errors import ConfigError
from prfaas.metrics import Emitter, MetricSet
from prfaas.types import GenerationRequest, RequestId, SamplingParams

PROFILE: dict[str, dict[str, object]] = {
    "hardware": {"name": "fast", "prefill_s": [[1, 0.001], [1000, 0.01]], "decode_step_s": [[1, 0.001], [8, 0.002]]},
    "model": {
        "architecture": "Imagined",
        "vocab_size": 1000,
        "num_layers": 2,
        "max_context_tokens": 4096,
        "eos_token_ids": [2],
        "groups": [
            {"name": "full", "kind": "full", "layers": [0], "tensors": [{"name": "latent", "shape": [16]}]},
            {"name": "state", "kind": "state", "layers": [1], "tensors": [{"name": "s", "shape": [4, 4], "dtype": "float32"}]},
        ],
    },
}


def settings(tmp_path: Path, content: object = PROFILE, **changes: object) -> EngineSettings:
    path = tmp_path / "profile.yaml"
    path.write_text(yaml.safe_dump(content))
    return EngineSettings.model_validate(
        {"kind": "emulated", "profile": str(path), "cache_bytes": 1 << 22, "time_scale": 0.01, **changes}
    )


def build(engine: EngineSettings) -> object:
    return build_engine(engine, source="/nowhere", served_name="m", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock())


async def test_an_emulated_engine_answers(tmp_path: Path) -> None:
    engine = build_engine(
        settings(tmp_path), source="/nowhere", served_name="mine", metrics=MetricSet(Emitter.WORKER), clock=MonotonicClock()
    )
    assert engine.spec.name == "mine"
    assert engine.spec.vocab_size == 1000
    sampling = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    stream = engine.submit(GenerationRequest(RequestId("r"), "mine", (5, 6, 7), sampling))
    events = [event async for event in stream.events()]
    assert sum(len(e.outputs) for e in events if isinstance(e, TokensOut)) == 4
    assert isinstance(events[-1], Finished)
    await engine.close()


def test_the_same_profile_has_the_same_fingerprint_and_another_cache_another(tmp_path: Path) -> None:
    from prfaas.engine.emulated_profile import load_emulation

    model = load_emulation(Path(str(settings(tmp_path).profile))).model
    assert model is not None
    assert model.to_spec("a", 64).fingerprint == model.to_spec("b", 32).fingerprint
    wider = model.model_copy(update={"groups": (model.groups[0],)})
    assert wider.to_spec("a", 64).fingerprint != model.to_spec("a", 64).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": None}, "needs a profile"),
        ({"profile": "/nowhere/profile.yaml"}, "cannot read"),
        ({"kind": "torch"}, "profile is for emulated engines"),
        ({"cache_bytes": 10}, "raise cache_bytes"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(settings(tmp_path, **changes))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [(("model", "groups", 0, "layers"), [7], "outside 0 to 1"), (("hardware", "prefill_s"), [[1, 1.0]], "at least two points")],
)
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, path: tuple[object, ...], value: object, message: str
) -> None:
    profile = yaml.safe_load(yaml.safe_dump(PROFILE))
    place = profile
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(ConfigError, match=message):
        build(settings(tmp_path, profile))


def test_an_emulated_engine_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, asyncio\n"
        "sys.modules['torch'] = None\n"
        "from prfaas.clock import MonotonicClock\n"
        "from prfaas.config import EngineSettings\n"
        "from prfaas.engine.factory import build_engine\n"
        "from prfaas.metrics import Emitter, MetricSet\n"
        f"settings = EngineSettings(kind='emulated', profile={settings(tmp_path).profile!r}, cache_bytes=1 << 22)\n"
        "metrics = MetricSet(Emitter.WORKER)\n"
        "engine = build_engine(settings, source='', served_name='m', metrics=metrics, clock=MonotonicClock())\n"
        "asyncio.run(engine.close())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_device_is_named_as_it_is_and_not_as_it_was_asked_for() -> None:
    assert device_of(EngineSettings(kind="emulated", device="cuda")) == "emulated"
    assert device_of(EngineSettings(device="cpu")) == "cpu"
    found = device_of(EngineSettings(device="auto"))
    assert found == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
