"""The commands and their flags. Each imports what it needs when it runs, so that `prfaas --help` answers at once."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prfaas.cli.bench.command import bench_app
from prfaas.cli.plan import plan
from prfaas.cli.profile import profile
from prfaas.cli.screen import Screen
from prfaas.cli.simulate import simulate
from prfaas.errors import PrfaasError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Prefill-as-a-Service: prefill in one datacenter, stream the KV cache, decode in another.",
)

doctor_app = typer.Typer(invoke_without_command=True)
app.add_typer(doctor_app, name="doctor")
app.add_typer(bench_app, name="bench")

ModelArgument = Annotated[
    str, typer.Argument(help="smollm2, tiny-kimi-linear, a model directory, a .gguf file, or a hub id such as owner/model")
]
FileOption = Annotated[
    Path | None, typer.Option("--file", "-f", help="Deployment file (YAML): sites, pools, engine, router, transport")
]
PoolOption = Annotated[str | None, typer.Option("--pool", help="ray or process: what runs the workers", metavar="KIND")]
HostOption = Annotated[str | None, typer.Option(help="Address the HTTP server binds [default: 127.0.0.1]")]
PortOption = Annotated[int | None, typer.Option(help="Port of the HTTP server [default: 8000]")]
PrefillOption = Annotated[int | None, typer.Option("--prefill", help="Prefill workers of the prefill site [default: 1]")]
PdPrefillOption = Annotated[int | None, typer.Option("--pd-prefill", help="Prefill workers of the PD site [default: 1]")]
DecodeOption = Annotated[int | None, typer.Option("--decode", help="Decode workers of the PD site [default: 1]")]
ThresholdOption = Annotated[
    int | None, typer.Option("--threshold", help="Uncached prompt tokens above which prefill goes to the remote site")
]
InlineOption = Annotated[
    int | None, typer.Option("--inline", help="Uncached prompt tokens up to which the decode worker prefills by itself")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16", metavar="TYPE")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda", metavar="DEVICE")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Compute threads of each worker [default: from the cores]")
]
CacheOption = Annotated[int | None, typer.Option("--cache-mb", help="KV cache of each worker in MiB", min=1)]
UrlOption = Annotated[str, typer.Option("--url", help="The router's HTTP address")]
KeyOption = Annotated[str | None, typer.Option("--api-key", help="Key for a router that asks for one", envvar="PRFAAS_API_KEY")]


@app.command()
def serve(
    model: ModelArgument,
    *,
    name: Annotated[str | None, typer.Option("--name", help="What clients call the model")] = None,
    file: FileOption = None,
    pool: PoolOption = None,
    host: HostOption = None,
    port: PortOption = None,
    prefill: PrefillOption = None,
    pd_prefill: PdPrefillOption = None,
    decode: DecodeOption = None,
    threshold: ThresholdOption = None,
    inline: InlineOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    cache_mb: CacheOption = None,
    emulate: Annotated[
        Path | None, typer.Option("--emulate", help="Emulate the engines with step times from this profile; no torch")
    ] = None,
) -> None:
    """Serve a model from two sites on this machine, until Ctrl-C."""
    from prfaas.cli.serve import ServeRequest, serve_until_stopped

    counts = _given(prefill=prefill, pd_prefill=pd_prefill, decode=decode)
    engine: dict[str, Any] = {"dtype": dtype, "device": device, "num_threads": threads}
    engine["cache_bytes"] = cache_mb * 1024**2 if cache_mb is not None else None
    if emulate is not None:
        engine |= {"kind": "emulated", "profile": str(emulate)}
    router = {"host": host, "port": port, "policy": {"threshold_tokens": threshold, "inline_tokens": inline}}
    flags = {"model": model, "served_model_name": name, "pool": pool, "engine": engine, "router": router}
    serve_until_stopped(ServeRequest(file=file, counts=counts or None, flags=flags), Screen())


@app.command()
def demo(*, pool: PoolOption = None, port: PortOption = None) -> None:
    """Fetch a small real model, serve it from two sites, ask it one question, and keep serving until Ctrl-C."""
    from prfaas.cli.demo import run_demo

    run_demo(pool=pool, port=port, screen=Screen())


@app.command()
def up(
    *,
    site: Annotated[Path, typer.Option("--site", help="Deployment file whose site to run", exists=True, dir_okay=False)],
    router: Annotated[str, typer.Option("--router", help="host:port of the router's gRPC registry", metavar="HOST:PORT")],
    only: Annotated[list[str] | None, typer.Option("--only", help="Run only this site of the file (repeatable)")] = None,
    run_directory: Annotated[
        Path | None, typer.Option("--run-directory", help="Write each worker's log and state into this directory")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Name of this driver in logs")] = "site",
    drain_s: Annotated[float, typer.Option("--drain-s", help="Seconds that workers get to finish their requests", min=0)] = 5.0,
) -> None:
    """Run the workers of one site against a router elsewhere, until Ctrl-C.

    A process drives one Ray cluster: a site with a Ray cluster of its own (`ray_address`) has an `up` of its own.
    """
    from prfaas.cli.site import SiteRequest, run_site

    run_site(
        SiteRequest(file=site, only=tuple(only or ()), router=router, run_directory=run_directory, name=name, drain_s=drain_s),
        Screen(),
    )


@app.command()
def fetch(
    model: ModelArgument,
    *,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="A router needs none")] = True,
    link: Annotated[Path | None, typer.Option("--link", help="Make this path a symbolic link to the model")] = None,
) -> None:
    """Fetch or generate a model without serving it, and print where it is."""
    from prfaas.cli.fetch import fetch_model

    print(fetch_model(model, weights=weights, link=link, screen=Screen()))


@app.command()
def worker(settings: Annotated[Path, typer.Option("--settings", help="Worker settings (YAML or JSON)", exists=True)]) -> None:
    """Run one worker in this process."""
    _become("prfaas.worker", settings)


@app.command()
def route(settings: Annotated[Path, typer.Option("--settings", help="Router settings (YAML or JSON)", exists=True)]) -> None:
    """Run the router in this process."""
    _become("router", settings)


@app.command()
def status(
    *, url: UrlOption = "http://127.0.0.1:8000", key: KeyOption = None, as_json: Annotated[bool, typer.Option("--json")] = False
) -> None:
    """Show whether a router serves, and with which workers. Exits 0 if it can answer requests, else 1."""
    from prfaas.cli.status import show_status

    raise typer.Exit(show_status(url, key, as_json=as_json, screen=Screen()))


@app.command()
def chat(
    question: Annotated[str | None, typer.Argument(help="Ask only this, and print the answer [default: talk]")] = None,
    *,
    url: UrlOption = "http://127.0.0.1:8000",
    key: KeyOption = None,
    model: Annotated[str | None, typer.Option("--model", help="[default: the served one]")] = None,
    system: Annotated[str | None, typer.Option("--system", help="System prompt")] = None,
    temperature: Annotated[float | None, typer.Option(help="0: always the likeliest token", min=0)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer", min=1)] = None,
) -> None:
    """Talk to the served model."""
    from prfaas.cli.chat import ChatOptions, run_chat

    run_chat(ChatOptions(url, key, model, system, temperature, max_tokens, question), Screen())


@doctor_app.callback()
def doctor(
    context: typer.Context, *, as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout")] = False
) -> None:
    """Check whether this machine can run prfaas, and say what to do about what is missing. Exits 1 if it cannot."""
    if context.invoked_subcommand is None:
        from prfaas.cli.doctor import examine

        raise typer.Exit(examine(as_json=as_json, screen=Screen()))


@doctor_app.command()
def link(
    address: Annotated[str, typer.Argument(help="host:port of a prefill worker", metavar="HOST:PORT")],
    *,
    site: Annotated[
        Path | None, typer.Option("--site", help="Deployment file whose transport settings to use", exists=True)
    ] = None,
    megabytes: Annotated[int, typer.Option("--mb", help="MB to move for each number of lanes", min=1)] = 32,
    allow_plaintext: Annotated[bool, typer.Option("--allow-plaintext", help="Probe beyond this machine without TLS")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout")] = False,
) -> None:
    """Measure the path to a prefill worker: round trip, bandwidth by lanes, loss, MTU, clock skew. Moves real bytes."""
    from prfaas.cli.doctor_link import LinkQuestion, examine_link

    question = LinkQuestion(address, site, allow_plaintext, megabytes * 10**6)
    examine_link(question, as_json=as_json, screen=Screen())


app.command()(plan)
app.command()(profile)
app.command()(simulate)


def main() -> None:
    """Entry point of the `prfaas` command: every failure of ours is one readable line, not a traceback."""
    try:
        app()
    except PrfaasError as error:
        Screen().error(error)
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        from prfaas.cli.outputs import failed_on

        Screen().error(failed_on(error))
        sys.exit(1)


def _given(**values: int | None) -> dict[str, int]:
    return {key: value for key, value in values.items() if value is not None}


def _become(module: str, settings: Path) -> None:
    """Replace this process, so that signals and the exit status are the program's own."""
    os.execv(sys.executable, [sys.executable, "-m", module, "--settings", str(settings)])
