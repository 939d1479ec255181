"""What a sidecar costs from 10 models on 8 devices to 1,000 on 1,000; writes results/scale.json and scale.png.

`python benchmarks/scale.py` takes about six minutes. Each size runs in a process of its own, on a synthetic fleet that follows the plans.
Times are processor times of the loop's thread; readings are apart.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from typing import Any

from common import RESULTS, versions, write_result
from matplotlib.figure import Figure
from scale_point import STAGES, measure

SIZES = ((10, 8), (30, 30), (100, 100), (200, 200), (300, 300), (1000, 1000))
WARM_UP, TICKS = 100, 140
BUDGET_S, START_S = 70.0, 60.0
GOAL_MS = 100.0
COLOURS = ("#2563eb", "#d97706", "#059669", "#7c3aed", "#6b7280")


def main() -> None:
    """Measure each size in turn, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, nargs=2, metavar=("MODELS", "DEVICES"), help="Measure one size and print it.")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help=f"Seconds of a size's ticks. Default: {BUDGET_S:g}.")
    flags = parser.parse_args()
    if flags.size is not None:
        models, devices = flags.size
        print(json.dumps(measure(models, devices, WARM_UP, TICKS, flags.budget)))
        return
    rows = [measured_apart(models, devices, flags.budget) for models, devices in SIZES]
    for row in rows:
        print(summary(row))
    print(write_result("scale", {"goal_ms": GOAL_MS, "sizes": rows, "versions": versions("numba", "numpy")}))
    draw([row for row in rows if "tick_ms" in row])


def measured_apart(models: int, devices: int, budget_s: float) -> dict[str, Any]:
    """The figures of one size from a fresh process; one that takes too long is a row without figures."""
    command = [sys.executable, __file__, "--size", str(models), str(devices), "--budget", str(budget_s)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=2 * budget_s + START_S)
    except subprocess.TimeoutExpired as error:
        return {"models": models, "devices": devices, "error": f"not measured within {error.timeout:g} s"}
    except subprocess.CalledProcessError as error:
        return {"models": models, "devices": devices, "error": error.stderr[-1000:]}
    row: dict[str, Any] = json.loads(done.stdout)
    return row


def summary(row: dict[str, Any]) -> str:
    """One line on one size."""
    size = f"{row['models']} models, {row['devices']} devices"
    if "error" in row:
        return f"{size}: {row['error']}"
    stages = ", ".join(f"{stage} {row['tick_ms'][stage]['p50_ms']}" for stage in STAGES)
    total = row["tick_ms"]["all"]
    return f"{size}: {total['count']} ticks, median {total['p50_ms']}, p99 {total['p99_ms']} ms ({stages}), {row['peak_memory_mb']} MB"


def draw(rows: list[dict[str, Any]]) -> None:
    """Tick, memory, xDS, journal and scrape by the number of models."""
    figure = Figure(figsize=(11.0, 6.5), dpi=130, layout="constrained")
    axes = figure.subplots(2, 3)
    models = [row["models"] for row in rows]
    curves: tuple[tuple[str, str, dict[str, list[float]]], ...] = (
        ("Tick", "processor time, p99 (ms)", {name: [row["tick_ms"][name]["p99_ms"] for row in rows] for name in ("all", *STAGES)}),
        ("Memory", "peak of the sidecar (MB)", {"all": [row["peak_memory_mb"] for row in rows]}),
        (
            "Routes",
            "bytes",
            {
                "files, whole": [row["routes"]["file_bytes"] for row in rows],
                "files, one server": [row["routes"]["file_bytes_a_server"] for row in rows],
                "xDS, whole": [row["routes"]["xds_bytes"] for row in rows],
                "xDS, one server": [row["routes"]["xds_bytes_a_server"] for row in rows],
                "xDS, one limit": [row["routes"]["xds_bytes_a_limit"] for row in rows],
            },
        ),
        (
            "Making routes",
            "processor time (ms)",
            {key: [row["routes"][key] for row in rows] for key in ("table_ms", "file_render_ms", "xds_pack_change_ms")},
        ),
        ("Journal", "growth without bound (MB an hour)", {"all": [row["journal_mb_an_hour"] for row in rows]}),
        (
            "Scrape",
            "processor time, a tick (ms)",
            {key: [row["scrape"][key] for row in rows] for key in ("servers_ms", "metrics_ms", "statistics_ms", "proxy_ms")},
        ),
    )
    for axis, (title, unit, lines) in zip(axes.flat, curves, strict=True):
        for colour, (label, values) in zip((*COLOURS, "#dc2626"), lines.items(), strict=False):
            axis.loglog(models, values, marker="o", markersize=3, color=colour, label=label.removesuffix("_ms").replace("_", " "))
        axis.set(xlabel="models (as many devices; 8 at 10)", ylabel=unit)
        axis.set_title(title, loc="left", fontweight="bold")
        if len(lines) > 1:
            axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    axes.flat[0].axhline(GOAL_MS, color="#dc2626", linestyle="--", linewidth=1)
    figure.savefig(RESULTS / "scale.png")


if __name__ == "__main__":
    main()
