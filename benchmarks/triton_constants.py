"""Constants of `themis` in Triton's world, with the real durations of changes and launches, evaluated on training days.

`THEMIS_TRACES=… python benchmarks/triton_constants.py` simulates the shipped settings, and these with a constant or two changed, on mild
surges of days 1 to 14, for servers that take 2 s and 20 s to launch. The first minute is left out: every run begins on one server,
and the launches at the start would dominate. `results/triton-constants.json` and a picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import matplotlib as mpl
import numpy as np
from common import RESULTS, versions, with_constants, write_result
from rich.progress import track
from tune import PIPELINES, training_surges

from themis_triton.commands.simulate_command import chosen
from themis_triton.commands.simulated_runs import WorldFlags, simulated_run
from themis_triton.core.config import DeviceSlot, ThemisConfig
from themis_triton.core.policy import PolicyName
from themis_triton.load.traces import TraceOptions
from themis_triton.load.twitter import WINDOW
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

PIPELINE = "video"
LAUNCHES_S = (2.0, 20.0)
Change = dict[str, float]
CHANGES: tuple[Change, ...] = (
    {},
    {"burst_headroom_factor": 1.4},
    {"burst_headroom_factor": 1.5},
    {"burst_headroom_factor": 1.8},
    {"slow_actuation_headroom_sigmas": 2.0},
    {"slow_actuation_headroom_sigmas": 3.0},
    {"shrink_stabilization_s": 2.5},
    {"shrink_stabilization_s": 10.0},
)
"""Empty: as shipped."""
SLOTS = 8
LEAST_RPS = 60.0
"""Mean rate of a window, undivided: a surge below the capacity of one server needs no other server."""
FIRST_S = 60
SHIPPED = "as shipped"


@dataclass(frozen=True, slots=True)
class Case:
    """One simulated run."""

    launch_s: float
    change: Change
    second: int


def main() -> None:
    """Simulate, sum up, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    flags = parser.parse_args()
    seconds = mild_surges(flags.seed, flags.windows)
    cases = [Case(launch_s, change, second) for launch_s in LAUNCHES_S for change in CHANGES for second in seconds]
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        runs = list(track(pool.map(partial(run, flags.scale), cases), "simulating", total=len(cases)))
    rows = [summed(cases, runs, launch_s, change) for launch_s in LAUNCHES_S for change in CHANGES]
    for row in rows:
        print(f"{row['launch_s']:g} s: {row['violations']:.4%} at {row['cost']:.0f}: {row['change']}")
    draw(rows)
    found = {"first_s_left_out": FIRST_S, "windows": [f"{WINDOW}{second}" for second in seconds], "rows": rows}
    write_result("triton-constants", {"seed": flags.seed, "scale": flags.scale, **found, "versions": versions("numpy", "numba")})


def mild_surges(seed: int, count: int) -> list[int]:
    """First seconds; the steep surges between them outrun any launch, whatever the constants."""
    drawn = training_surges(np.random.default_rng(seed), 2 * count + len(PIPELINES), LEAST_RPS)
    return [second for number, second in enumerate(drawn) if number // len(PIPELINES) % 2 == 0][:count]


def run(scale: float, case: Case) -> tuple[float, float, float]:
    """After the first minute: requests, those outside their SLO, and the cost."""
    config = changed(load_settings(shipped("config") / "themis.yaml"), case.change)
    trace = TraceOptions(f"{WINDOW}{case.second}", scale=scale)
    found = simulated_run(config, trace, WorldFlags(cold_start_s=case.launch_s), None, (PolicyName.THEMIS.value, 0))
    rate, late, servers, instances = (
        np.asarray(row, dtype=np.float64)[FIRST_S:].sum()
        for row in (found.series.rate_rps, found.series.violations, found.series.servers, found.series.instances)
    )
    return float(rate), float(late), float(config.prices.server * servers + config.prices.instance * instances)


def changed(config: ThemisConfig, change: Change) -> ThemisConfig:
    """One pipeline on more slots than it needs, with the constant changed."""
    slots = tuple(DeviceSlot(f"cpu:{number}", f"cpu:{number}") for number in range(SLOTS))
    return replace(
        chosen(config, [PIPELINE]),
        launch=replace(config.launch, slots=slots) if config.launch is not None else None,
        policy=with_constants(config.policy, dict(change)),
    )


def summed(cases: Sequence[Case], runs: Sequence[tuple[float, float, float]], launch_s: float, change: Change) -> dict[str, Any]:
    """All windows of one launch time and change: the share of late requests, and the cost."""
    own = [run for case, run in zip(cases, runs, strict=True) if (case.launch_s, case.change) == (launch_s, change)]
    requests, late, cost = (float(total) for total in np.sum(own, axis=0))
    name = ", ".join(f"{constant} {value:g}" for constant, value in change.items()) or SHIPPED
    return {"launch_s": launch_s, "change": name, "violations": late / requests, "cost": round(cost, 1)}


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Violations over cost, a panel for each launch time."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, panels = plt.subplots(1, len(LAUNCHES_S), figsize=(6 * len(LAUNCHES_S), 5))
    for axes, launch_s in zip(panels, LAUNCHES_S, strict=True):
        for number, row in enumerate(row for row in rows if row["launch_s"] == launch_s):
            marker = "*" if row["change"] == SHIPPED else "o"
            at = (row["cost"] / 1000.0, row["violations"] * 100)
            axes.plot(*at, marker, color=f"C{number}", markersize=10, label=row["change"])
        axes.set(xlabel="cost, thousands", ylabel="requests outside the SLO, %", title=f"launch {launch_s:g} s, days 1 to 14")
        axes.grid(alpha=0.3)
    panels[-1].legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "triton-constants.png", dpi=150)


if __name__ == "__main__":
    main()
