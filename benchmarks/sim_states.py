"""The simulator against the steady states that `states.py` measured on real Triton behind real Envoy: p99 under the very same arrivals.

`python benchmarks/sim_states.py` takes seconds; it starts nothing.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from common import RESULTS, write_result
from matplotlib.figure import Figure

from themis_triton.commands.simulate_command import chosen
from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import ModelState
from themis_triton.load.traces import TraceOptions, arrivals, load_trace
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped
from themis_triton.sim.setup import PREROLL_S, build_simulation
from themis_triton.sim.world import triton_world

SEED, WARM_S, DRAIN_S = 7, 2, 60.0
OTHER_SEEDS = range(100, 120)


def main() -> None:
    """Simulate every measured state and write `results/sim-states.*`."""
    config = chosen(load_settings(shipped("config") / "themis.yaml"), ["video"])
    states = json.loads((RESULTS / "states.json").read_text())
    rows = []
    for row in states["rows"]:
        found = [percentiles_ms(config, row, states["seconds"], seed) for seed in (SEED, *OTHER_SEEDS)]
        spread = [p99 for _, p99 in found[1:]]
        simulated = {"simulated_p50_ms": found[0][0], "simulated_p99_ms": found[0][1], "other_seeds_p99_ms": [min(spread), max(spread)]}
        rows.append(row | simulated | {"error": found[0][1] / row["measured_p99_ms"] - 1.0})
    report(rows)


def percentiles_ms(config: ThemisConfig, row: dict[str, Any], seconds: int, seed: int) -> tuple[float, float]:
    """Simulated p50 and p99 of a state, its first seconds left out as in the measurement."""
    trace = load_trace(TraceOptions(rate_rps=row["rate_rps"], duration_s=seconds + WARM_S), seed)
    simulation = build_simulation(config, {"video": arrivals(trace, seed)}, triton_world(), seed)
    servers = range(row["servers"])
    for model, instances in enumerate(row["instances"]):
        for server in servers:
            simulation.configure(server, model, ModelState(instances, row["max_batch"]))
        simulation.route(model, tuple(servers))
    simulation.advance(PREROLL_S + trace.duration_s + DRAIN_S)
    engine = simulation.engine
    latency_ms = 1000.0 * (engine.ended_s - engine.arrival_s)
    counted = latency_ms[engine.arrival_s >= PREROLL_S + WARM_S]
    return round(float(np.percentile(counted, 50)), 1), round(float(np.percentile(counted, 99)), 1)


def report(rows: list[dict[str, Any]]) -> None:
    """JSON, table and picture."""
    error = np.array([row["error"] for row in rows])
    summary = {
        "states": len(rows),
        "mean_error": float(error.mean()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "largest_absolute_error": float(np.abs(error).max()),
    }
    write_result("sim-states", {**summary, "hop_s": triton_world().hop_s, "rows": rows})
    lines = [
        "| servers | instances | largest batch | rate 1/s | measured p99 ms | simulated p99 ms | error | simulated, 20 other seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['servers']} | {r['instances'][0]} + {r['instances'][1]} | {r['max_batch']} | {r['rate_rps']:.0f} "
        f"| {r['measured_p99_ms']:.0f} | {r['simulated_p99_ms']:.0f} | {r['error']:+.0%} "
        f"| {r['other_seeds_p99_ms'][0]:.0f} to {r['other_seeds_p99_ms'][1]:.0f} |"
        for r in rows
    ]
    summary_text = (
        f"\n{summary['states']} states: the simulated p99 is off by {summary['mean_absolute_error']:.1%} in the mean, "
        f"{summary['largest_absolute_error']:.0%} at most; its mean error is {summary['mean_error']:+.1%}.\n"
    )
    (RESULTS / "sim-states.md").write_text("\n".join(lines) + "\n" + summary_text)
    draw(rows)
    print(summary_text)


def draw(rows: list[dict[str, Any]]) -> None:
    figure = Figure(figsize=(6.5, 6.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    for servers, colour in ((1, "#2563eb"), (2, "#d97706")):
        chosen_rows = [row for row in rows if row["servers"] == servers]
        label = f"{servers} server{'s' if servers > 1 else ''}"
        axes.scatter([r["measured_p99_ms"] for r in chosen_rows], [r["simulated_p99_ms"] for r in chosen_rows], color=colour, label=label)
    top = 1.05 * max(max(row["measured_p99_ms"], row["simulated_p99_ms"]) for row in rows)
    axes.plot([0, top], [0, top], color="#6b7280", linestyle="--", label="equal")
    axes.set(xlim=(0, top), ylim=(0, top), xlabel="measured p99 (ms)", ylabel="simulated p99 (ms)")
    axes.set_title("p99 in steady states under the same arrivals", loc="left", fontweight="bold")
    axes.legend()
    figure.savefig(RESULTS / "sim-states.png")


if __name__ == "__main__":
    main()
