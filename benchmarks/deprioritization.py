"""Deprioritized late requests on real Triton: three seconds of twice the capacity of one instance, with and without.

`python benchmarks/deprioritization.py` takes two minutes; it writes `results/deprioritization.json` and a picture.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, versions, write_result
from matplotlib.figure import Figure

from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig
from themis_triton.core.fleet import ModelState
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.results import LoadResult
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

MODEL, SLO_MS = "video-detector", 300.0
DEPRIORITIZE_AFTER_S = 0.5 * SLO_MS / 1000.0
CARRIED_RPS = {2: 41.7, 4: 55.6, 8: 66.7}
"""Batch limits of one instance; such batches take 48, 72 and 120 ms."""
SURGE_S, AFTER_S = 3, 12
ROWS = ("in turn", "late ones last")


def main() -> None:
    """Measure both queues for each maximum batch size, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        try:
            found = {batch: asyncio.run(both(directory, batch)) for batch in CARRIED_RPS}
        finally:
            stop_everything(directory, timeout_s=5.0)
    draw(found, RESULTS / "deprioritization.png")
    write_result(
        "deprioritization",
        {
            "model": MODEL,
            "slo_ms": SLO_MS,
            "deprioritize_after_s": DEPRIORITIZE_AFTER_S,
            "load": f"{SURGE_S} s of twice what is carried, {AFTER_S} s of half of it",
            "by_largest_batch": {str(batch): {name: row(result) for name, result in results.items()} for batch, results in found.items()},
            "versions": versions("nvidia-pytriton"),
        },
    )


async def both(directory: Path, batch: int) -> dict[str, LoadResult]:
    """Send the same arrivals to a separate server for each queue."""
    trace = directory / f"burst-{batch}.csv"
    rates = [2 * CARRIED_RPS[batch]] * SURGE_S + [CARRIED_RPS[batch] / 2] * AFTER_S
    trace.write_text("rate\n" + "\n".join(f"{rate:.1f}" for rate in rates) + "\n", encoding="utf-8")
    settings: tuple[Mapping[str, float], ...] = ({}, {MODEL: DEPRIORITIZE_AFTER_S})
    return {
        name: await served(directory, batch, deprioritize_after_s, trace) for name, deprioritize_after_s in zip(ROWS, settings, strict=True)
    }


async def served(directory: Path, batch: int, deprioritize_after_s: Mapping[str, float], trace: Path) -> LoadResult:
    """A server with one instance, and its answers."""
    launch = LocalLaunchConfig((DeviceSlot("cpu", "cpu:0"),), shipped("model_repository"))
    servers = LocalLauncher(launch, directory, deprioritize_after_s)
    server = await servers.wait_ready(await servers.launch(f"s{batch}-{len(deprioritize_after_s)}", "cpu", {MODEL: ModelState(1, batch)}))
    try:
        await servers.warm_up(server)
        _, results = await run_load(
            LoadOptions(server.grpc_address.authority, (PipelineLoad("one", (MODEL,), SLO_MS, TraceOptions(str(trace))),))
        )
        return results[0]
    finally:
        await servers.stop(server)


def row(result: LoadResult) -> dict[str, Any]:
    """The answers of one queue to the burst."""
    latency_ms = result.latency_ms
    return {
        "requests": int(latency_ms.size),
        "failed": int(np.count_nonzero(~result.ok)),
        "inside_slo": round(float(np.mean(latency_ms <= SLO_MS)), 4),
        "p50_ms": round(float(np.median(latency_ms)), 1),
        "mean_ms": round(float(latency_ms.mean()), 1),
        "longest_ms": round(float(latency_ms.max()), 1),
    }


def draw(found: Mapping[int, Mapping[str, LoadResult]], path: Path) -> None:
    """Draw each request's latency over its send time; one panel per maximum batch size."""
    figure = Figure(figsize=(4.2 * len(found), 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True)
    for panel, (batch, results) in zip(panels, found.items(), strict=True):
        for name, result in results.items():
            inside = np.mean(result.latency_ms <= SLO_MS)
            panel.plot(result.intended_s, result.latency_ms, ".", markersize=4, label=f"{name}: {inside:.0%} inside")
        panel.axhline(SLO_MS, color="grey", linewidth=1)
        panel.set(title=f"batches up to {batch}", xlabel="sent, s", yscale="log")
        panel.legend()
    panels[0].set_ylabel("latency, ms")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
