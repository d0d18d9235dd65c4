"""Every third-party client in an environment of its own, against the demo model served from two sites on this machine.

    python tests/clients/run_all.py [CLIENT ...] [--url URL --model NAME]

Each client is installed from its package index; one that cannot be installed fails the run.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks.served import served  # noqa: E402  (the path must be set first)
from prfaas.artifacts import resolve_model  # noqa: E402
from prfaas.cli.catalog import catalog  # noqa: E402
from tests.clients.environment import NotInstalled, environment, node_modules  # noqa: E402

# Script in scripts/, and the packages it needs.
CLIENTS = {
    "openai_python.py": ("openai",),
    "openai_node.mjs": ("openai",),
    "anthropic_client.py": ("anthropic",),
    "langchain_client.py": ("langchain-openai",),
    "litellm_client.py": ("litellm", "mcp"),  # without the second, its calls with tools cannot be imported
    "llm_client.py": ("llm",),
    "live_page.py": ("playwright",),  # drives the system's chromium
}
RUN_TIMEOUT_S = 300


def main(arguments: Sequence[str]) -> int:
    """Run the named clients, or all; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(CLIENTS)} (default: all)")
    parser.add_argument("--url", help="a service that runs already (default: the demo model is served)")
    parser.add_argument("--model", default="smollm2", help="its name there (default: %(default)s)")
    parser.add_argument("--screenshot", type=Path, metavar="FILE", help="keep a picture of the live page")
    options = parser.parse_args(arguments)
    unknown = set(options.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"there is no client {', '.join(sorted(unknown))}")
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, _service(options.url, options.model, Path(scratch)) as url:
        for script in options.clients or CLIENTS:
            print(f"== {script}", flush=True)
            variables = _variables(url, options.model, Path(scratch) / Path(script).stem, options.screenshot)
            if not _run(script, CLIENTS[script], variables):
                failed.append(script)
    print(f"failed: {', '.join(failed)}" if failed else "all clients passed")
    return len(failed)


@contextmanager
def _service(url: str | None, model: str, scratch: Path) -> Iterator[str]:
    """The address of a service; one with a threshold that sends some of the prompts through the other site."""
    if url is not None:
        yield url
        return
    resolved = resolve_model(model, catalog(), progress=print)
    with served(resolved, scratch, engine={}, policy={"threshold_tokens": 40, "inline_tokens": 8}) as started:
        yield started


def _variables(url: str, model: str, folder: Path, screenshot: Path | None) -> dict[str, str]:
    """The environment in which a client finds the service, each under its own names."""
    picture = {} if screenshot is None else {"SCREENSHOT": str(screenshot.resolve())}
    return {
        **os.environ,
        **picture,
        "MODEL": model,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "unused",
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "unused",
        "LLM_USER_PATH": str(folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would ask a web site for prices
    }


def _run(script: str, packages: Sequence[str], variables: dict[str, str]) -> bool:
    path = HERE / "scripts" / script
    try:
        if path.suffix == ".mjs":
            modules = node_modules(path.stem, packages)
            copy = modules / path.name  # Node looks for packages beside the script
            copy.write_text(path.read_text())
            command = ["node", str(copy)]
        else:
            command = [str(environment(path.stem, packages) / "bin" / "python"), str(path)]
        return subprocess.run(command, env=variables, timeout=RUN_TIMEOUT_S, check=False).returncode == 0
    except (NotInstalled, subprocess.TimeoutExpired) as error:
        print(error)
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
