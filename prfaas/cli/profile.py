"""`prfaas profile`: the command around the measurement, and the file it leaves for planning, simulating and emulating."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from prfaas.cli.outputs import require_places
from prfaas.cli.screen import Screen
from prfaas.errors import ConfigError


def profile(
    model: Annotated[str, typer.Argument(help="A model as for 'prfaas serve'")],
    *,
    lengths: Annotated[str, typer.Option("--lengths", help="Prompt tokens to measure, comma-separated")] = "64,256,1024,2048",
    batches: Annotated[str, typer.Option("--batches", help="Sequences that decode at once, comma-separated")] = "1,2,4,8",
    repeats: Annotated[int, typer.Option("--repeats", help="Times each length is measured; the median counts", min=1)] = 3,
    dtype: Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16", metavar="TYPE")] = "auto",
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda", metavar="DEVICE")] = "auto",
    threads: Annotated[int, typer.Option("--threads", help="Compute threads; 0: as torch likes", min=0)] = 0,
    cache_mb: Annotated[int, typer.Option("--cache-mb", help="KV cache in MiB", min=1)] = 512,
    emulate: Annotated[
        Path | None, typer.Option("--emulate", help="Measure an emulated engine with this profile instead", exists=True)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts")] = 0,
    out: Annotated[str, typer.Option("--json", help="Where the profile goes, '-' for stdout", metavar="FILE")] = "profile.json",
) -> None:
    """Measure prefill time by length, KV bytes by length and the decode step by batch, and write them as a profile.

    `prfaas serve --emulate` runs engines by it; `hardware` and `model` of a plan file may name it.
    """
    from prfaas.artifacts import resolve_model
    from prfaas.cli.catalog import catalog
    from prfaas.cli.profiling import ProfilePlan, profile_engine
    from prfaas.clock import MonotonicClock
    from prfaas.config import EngineSettings, validate
    from prfaas.engine.api import Engine
    from prfaas.engine.emulated_profile import EmulationInput
    from prfaas.engine.factory import build_engine, device_of
    from prfaas.metrics import Emitter, MetricSet

    require_places(out)
    screen, clock = Screen(), MonotonicClock()
    plan = ProfilePlan(_numbers(lengths, "--lengths"), _numbers(batches, "--batches"), repeats, seed)
    engine_fields = {
        "dtype": dtype,
        "device": device,
        "num_threads": threads,
        "cache_bytes": cache_mb * 1024**2,
        "max_running": max(plan.batches),
        "prefix_cache": False,
        **({"kind": "emulated", "profile": str(emulate)} if emulate is not None else {}),
    }
    settings = validate(EngineSettings, engine_fields)
    found = resolve_model(model, catalog(), progress=screen.step)
    screen.step(f"loading {found.served_name}")
    engine = build_engine(
        settings, source=found.source, served_name=found.served_name, metrics=MetricSet(Emitter.WORKER), clock=clock
    )

    async def measured(engine: Engine) -> EmulationInput:
        try:
            return await profile_engine(engine, plan, name=device_of(settings), clock=clock, say=screen.step)
        finally:
            await engine.close()

    document = json.dumps(asyncio.run(measured(engine)).model_dump(mode="json"), indent=1)
    if out == "-":
        print(document)
    else:
        Path(out).write_text(document + "\n")
        screen.done(f"wrote {out}: 'prfaas serve {model} --emulate {out}' runs by it")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """At least two rising numbers, because a curve goes through them. Raises ConfigError."""
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r} is not a list of numbers such as 64,256,1024") from error
    if len(numbers) < 2 or numbers[0] < 1:
        raise ConfigError(f"{option} needs at least two numbers above zero, and has {text!r}")
    return numbers
