"""Mooncake's TCP engine, measured as our transport is: one process holds a buffer, the other reads it into its own.

    python benchmarks/mooncake_ends.py BYTES REPEAT

Runs under any interpreter that has `mooncake-transfer-engine`; prints one JSON line of seconds.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time


def engine():  # type: ignore[no-untyped-def]  # the engine has no type stubs
    from mooncake.engine import TransferEngine

    made = TransferEngine()
    if made.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") != 0:
        raise SystemExit("mooncake did not start")
    return made


def holder(size: int) -> None:
    held = engine()
    buffer = (ctypes.c_char * size)()
    ctypes.memset(buffer, 1, size)
    if held.register_memory(ctypes.addressof(buffer), size) != 0:
        raise SystemExit("mooncake did not register the buffer")
    print(f"AT 127.0.0.1:{held.get_rpc_port()} {ctypes.addressof(buffer)}", flush=True)
    sys.stdin.read()


def reader(size: int, repeat: int) -> None:
    child = subprocess.Popen(
        [sys.executable, __file__, "hold", str(size)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdin is not None
    line = next(line for line in child.stdout if line.startswith("AT "))
    _, target, address = line.split()
    reading = engine()
    buffer = (ctypes.c_char * size)()
    ctypes.memset(buffer, 2, size)
    reading.register_memory(ctypes.addressof(buffer), size)
    times = []
    for number in range(repeat + 1):
        began = time.perf_counter()
        if reading.transfer_sync_read(target, ctypes.addressof(buffer), int(address), size) != 0:
            raise SystemExit("mooncake did not transfer")
        if number > 0:
            times.append(time.perf_counter() - began)
    print(json.dumps({"times": times, "bytes": size}), flush=True)
    child.stdin.close()
    child.wait()


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        holder(int(sys.argv[2]))
    else:
        reader(int(sys.argv[1]), int(sys.argv[2]))
