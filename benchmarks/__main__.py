"""Runs every benchmark, one after the other, with its bars: `python -m benchmarks [NAME ...]`. Exits 1 if one is missed."""

from __future__ import annotations

import subprocess
import sys

NAMES = (
    "end_to_end",
    "engine",
    "layers",
    "transport",
    "router",
    "http_overhead",
    "emulated_fleet",
    "emulated_link",
    "simulator",
)


def main() -> int:
    wanted = sys.argv[1:] or list(NAMES)
    failed = []
    for name in wanted:
        print(f"== benchmarks.{name}", file=sys.stderr)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", "--check"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"missed a bar or failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
