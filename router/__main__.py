"""`python -m router --settings FILE`: run the router until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import threading
from pathlib import Path

from prfaas.config import RouterSettings, resolve
from prfaas.errors import OperatorError
from prfaas.log import configure_logging
from router.main import run_router

GC_ALLOCATIONS = 20_000  # net new containers before the youngest are looked at


def _settle_memory() -> None:
    """What is here by now stays, so collections need not look at it; requests leave few cycles, so they can be rarer."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 20)


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m router", description="Run the prfaas router.")
    parser.add_argument("--settings", type=Path, required=True, help="YAML or JSON file of RouterSettings")
    arguments = parser.parse_args()
    configure_logging("router")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_router(resolve(RouterSettings, file=arguments.settings), stop, on_ready=lambda _: _settle_memory())
    except OperatorError as error:
        print(f"router: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
