"""`python -m router --settings FILE`: run the router until SIGTERM or SIGINT, then drain."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from prfaas.config import RouterSettings, resolve
from prfaas.errors import OperatorError
from prfaas.log import configure_logging
from router.main import run_router


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
        run_router(resolve(RouterSettings, file=arguments.settings), stop)
    except OperatorError as error:
        print(f"router: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
