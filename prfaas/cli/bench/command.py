"""`prfaas bench`: a load generator for any OpenAI-compatible server. The flags, and what is done with a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from prfaas.cli.screen import Screen
from prfaas.errors import ConfigError

bench_app = typer.Typer(invoke_without_command=True)

DEFAULT_CONCURRENCY = 8
DEFAULT_REQUESTS = 64


@bench_app.callback()
def bench(
    context: typer.Context,
    *,
    url: Annotated[str, typer.Option("--url", help="The server")] = "http://127.0.0.1:8000",
    against: Annotated[
        str | None, typer.Option("--against", help="A second server: the same workload, both beside each other", metavar="URL")
    ] = None,
    key: Annotated[str | None, typer.Option("--api-key", help="Sent as a bearer token", envvar="PRFAAS_API_KEY")] = None,
    model: Annotated[str | None, typer.Option("--model", help="[default: the first that the server lists]")] = None,
    endpoint: Annotated[str, typer.Option("--endpoint", help="chat or completions", metavar="KIND")] = "chat",
    isl: Annotated[str, typer.Option("--isl", help="Prompt tokens: 512, or a range such as 256:1024")] = "512",
    osl: Annotated[str, typer.Option("--osl", help="Output tokens, likewise")] = "64",
    shared: Annotated[int, typer.Option("--shared", help="Of the prompt's tokens, how many are the same in all", min=0)] = 0,
    turns: Annotated[int, typer.Option("--turns", help="Turns of each conversation; each adds ISL tokens", min=1)] = 1,
    pause_s: Annotated[float, typer.Option("--pause-s", help="Seconds before each later turn", min=0)] = 0.0,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", help="Prompts instead of made-up ones: JSON lines with prompt, messages or conversations (ShareGPT); "
            "or a trace (Mooncake JSONL, BurstGPT CSV), played in its own time", exists=True, dir_okay=False,
        ),
    ] = None,
    speed: Annotated[float, typer.Option("--speed", help="Play a trace this many times as fast", min=0.001)] = 1.0,
    requests: Annotated[
        int | None, typer.Option("--requests", "-n", help="Conversations [default: 64, or the whole file]", min=1)
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="So many at once [default: 8, unless there is a rate]", min=1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Conversations begun a second, whatever the server does", min=0.0001)
    ] = None,
    cv: Annotated[
        float, typer.Option("--cv", help="Variation of the gaps of a rate: 0 even, 1 Poisson, above in bursts", min=0, max=20)
    ] = 1.0,
    warmup: Annotated[int, typer.Option("--warmup", help="Requests before the measured ones", min=0)] = 2,
    ignore_eos: Annotated[bool, typer.Option(help="Ask for answers of exactly OSL tokens")] = True,
    extra: Annotated[
        list[str] | None, typer.Option("--extra", help="A further field of each body, as KEY=JSON (repeatable)")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Longest a request may take", min=0.001)] = 600.0,
    seed: Annotated[int, typer.Option("--seed", help="The same seed sends the same requests")] = 0,
    slo_ttft: Annotated[float | None, typer.Option("--slo-ttft", help="Goodput: TTFT within so many ms", min=0.001)] = None,
    slo_itl: Annotated[
        float | None, typer.Option("--slo-itl", help="Goodput: mean inter-token latency within so many ms", min=0.001)
    ] = None,
    json_out: Annotated[
        str | None, typer.Option("--json", help="Write the run as JSON to this file, '-' for stdout", metavar="FILE")
    ] = None,
    plot_out: Annotated[
        Path | None, typer.Option("--plot", help="Draw TTFT, ITL and output over time (.png, .svg, .pdf)", metavar="FILE")
    ] = None,
) -> None:  # fmt: skip
    """Load an OpenAI-compatible server and report latencies, throughput and goodput.

    Exits with 1 when a request fails or brings no token.
    """
    if context.invoked_subcommand is not None:
        return
    from prfaas.cli.bench.dialect import Endpoint
    from prfaas.cli.bench.drive import Arrival
    from prfaas.cli.bench.figures import Objective
    from prfaas.cli.bench.running import Plan
    from prfaas.cli.bench.workload import Lengths, Shape

    if endpoint not in list(Endpoint):
        raise ConfigError(f"--endpoint is chat or completions, not {endpoint!r}")
    if concurrency is not None and rate is not None:
        raise ConfigError("--concurrency waits for answers and --rate does not: give one of them")
    plan = Plan(
        arrival=Arrival(_concurrency(concurrency, rate, file), rate, cv),
        shape=None if file is not None else Shape(Lengths.of(isl), Lengths.of(osl), turns, pause_s, shared),
        file=file,
        speed=speed,
        requests=requests if requests is not None or file is not None else DEFAULT_REQUESTS,
        warmup=warmup,
        endpoint=Endpoint(endpoint),
        model=model,
        api_key=key,
        extra={**({"ignore_eos": True} if ignore_eos else {}), **_fields(extra or ())},
        timeout_s=timeout_s,
        seed=seed,
        objective=Objective(*(None if limit_ms is None else limit_ms / 1e3 for limit_ms in (slo_ttft, slo_itl))),
    )
    from prfaas.cli.bench.session import Output, run_bench

    urls = [url] if against is None else [url, against]
    raise typer.Exit(run_bench(urls, plan, Output(json_out, plot_out), Screen()))


@bench_app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A file of 'prfaas bench --json'", exists=True, dir_okay=False)],
    second: Annotated[Path, typer.Argument(help="Another", exists=True, dir_okay=False)],
    *,
    plot_out: Annotated[
        Path | None, typer.Option("--plot", help="Draw both (.png, .svg, .pdf)", metavar="FILE")
    ] = None,
) -> None:  # fmt: skip
    """Show two runs beside each other, with ratios. A ratio above 1 says that the second is better."""
    from prfaas.cli.bench.session import compare_files

    compare_files(first, second, plot_out)


def _concurrency(given: int | None, rate: float | None, file: Path | None) -> int | None:
    """Without a concurrency or a rate, a trace is played in its own time, and all else with some requests at once."""
    if given is not None or rate is not None:
        return given
    from prfaas.cli.bench.dataset import is_trace

    return None if file is not None and is_trace(file) else DEFAULT_CONCURRENCY


def _fields(pairs: Sequence[str]) -> dict[str, Any]:
    """Raises ConfigError for what is not KEY=JSON; a value that is no JSON is a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"--extra {pair!r} is not KEY=JSON, such as temperature=0")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found
