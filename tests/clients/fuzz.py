"""schemathesis against the gateway: cases generated from its OpenAPI document, which must hold for every answer.

    python tests/clients/fuzz.py [--cases 2000] [--only PATH ...]

Exits with 1 when an answer is a 5xx, breaks the document's promises, or when a body that the document forbids is taken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.clients.environment import environment  # noqa: E402  (the path must be set first)
from tests.support.http_server import served_gateway  # noqa: E402

REQUIREMENT = "schemathesis==4.32.5"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
TIMEOUT_S = 3600


def main(arguments: Sequence[str]) -> int:
    """Returns the number of endpoints with findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="for each endpoint (default: %(default)s)")
    parser.add_argument("--only", nargs="+", metavar="PATH", help="these endpoints (default: all)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch, served_gateway(Path(scratch)) as gateway:
        gateway.fleet.context = 1_000_000  # nothing is refused for its length
        program = environment("schemathesis", [REQUIREMENT]) / "bin" / "schemathesis"
        document = httpx.get(f"{gateway.url}/openapi.json").json()
        make_deeper(document)
        drop_discriminators(document)
        specification = Path(scratch) / "openapi.json"
        specification.write_text(json.dumps(document))
        for path in options.only or sorted(document["paths"]):
            print(f"== {path}", flush=True)
            command = [
                str(program), "run", str(specification), "--url", gateway.url, "--phases", "fuzzing", "--checks",
                ",".join(CHECKS), "--max-examples", str(options.cases), "--include-path", path, "--seed", str(options.seed),
                "--generation-database", "none", "--suppress-health-check", "all",
            ]  # fmt: skip
            if subprocess.run(command, cwd=scratch, timeout=TIMEOUT_S, check=False).returncode != 0:
                failed.append(path)
    print(f"findings at: {', '.join(failed)}" if failed else "no findings")
    return len(failed)


def make_deeper(document: dict[str, Any]) -> None:
    """Let every request name the served model, so that what comes behind that check is reached; in place."""
    for schema in document["components"]["schemas"].values():
        if schema.get("additionalProperties") is False and "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "const": "test-model"}


def drop_discriminators(node: Any) -> None:
    """Leave the alternatives to speak for themselves, in place: where one discriminator value is taken for another of the
    same alternative ("system" and "developer"), the generator believes that it broke the rules."""
    if isinstance(node, dict):
        if "oneOf" in node:
            node.pop("discriminator", None)
        for inner in node.values():
            drop_discriminators(inner)
    elif isinstance(node, list):
        for inner in node:
            drop_discriminators(inner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
