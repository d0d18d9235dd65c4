"""Every third-party client in an environment of its own, against one gateway on loopback.

    python tests/clients/run_all.py [CLIENT...]

Each client is installed from the package index into a throwaway environment, so that none of them constrains the
versions of another or of this project. A client that cannot be installed fails the run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.support.http_server import served_gateway  # noqa: E402  (the path must be set first)

# Script in scripts/, and what it needs.
CLIENTS = {
    "langchain": ("langchain-openai",),
    "litellm": ("litellm",),
    "llm": ("llm",),
    "openai_node": (),
}
INSTALL_TIMEOUT_S = 600
RUN_TIMEOUT_S = 120


def main(names: Sequence[str]) -> int:
    """Run the named clients, or all; returns how many failed."""
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, served_gateway(Path(folder)) as gateway:
        for name in names or CLIENTS:
            print(f"== {name}", flush=True)
            if not _run(name, CLIENTS[name], Path(folder) / name, f"{gateway.url}/v1"):
                failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all clients passed")
    return len(failed)


def _run(name: str, packages: Sequence[str], folder: Path, base_url: str) -> bool:
    environment = {**os.environ, "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "unused", "LLM_USER_PATH": str(folder)}
    environment["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it would ask a web site for prices
    if name == "openai_node":
        folder.mkdir()
        install = ["npm", "install", "--silent", "--prefix", str(folder), "openai"]
        command = ["node", str(folder / "client.mjs")]
        (folder / "client.mjs").write_text((HERE / "scripts" / "openai_node.mjs").read_text())
    else:
        venv.create(folder / "venv", with_pip=True)
        python = str(folder / "venv" / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        command = [python, str(HERE / "scripts" / f"{name}_client.py")]
    if subprocess.run(install, timeout=INSTALL_TIMEOUT_S, check=False).returncode != 0:
        print(f"{name} could not be installed")
        return False
    return subprocess.run(command, env=environment, timeout=RUN_TIMEOUT_S, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
