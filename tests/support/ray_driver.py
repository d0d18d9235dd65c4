"""Drives a RayPool in a process of its own, since a process can be connected to one Ray cluster: for tests of two sites.

usage: ray_driver.py RAY_ADDRESS ORDERS_JSON STATE_JSON    (runs until its standard input closes)
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from prfaas.cluster.api import WorkerOrder
from prfaas.cluster.ray_pool import RayPool
from prfaas.config import WorkerSettings


def main() -> None:
    address, orders_file, state_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    orders = [
        WorkerOrder(WorkerSettings.model_validate(entry["settings"]), resources=tuple(map(tuple, entry["resources"])))
        for entry in json.loads(orders_file.read_text())
    ]
    pool = RayPool(address=address)
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    try:
        pool.start(orders)
        while not stop.wait(0.3):
            part = state_file.with_suffix(".part")
            part.write_text(json.dumps([asdict(member) for member in pool.members()]))
            part.replace(state_file)
    finally:
        pool.close(drain_s=1.0)


if __name__ == "__main__":
    main()
