"""How many servers to keep for a surge that instances must absorb while a server starts, by how long that takes.

`THEMIS_TRACES=… python benchmarks/surges.py` measures on days 1 to 14 of the trace how far load rises within a launch (the default of
`policy.surge_factor` is the 99th percentile), and simulates `themis` in Triton's world on surges of these days with the default and
with fixed factors; `results/surges.json` and a picture.
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
from common import RESULTS, versions, write_result
from forecast_windows import rates_of_days
from numpy.typing import NDArray
from rich.progress import track
from tune import TRAINING_DAYS, training_surges

from themis_triton.commands.simulated_runs import WorldFlags, simulated_run
from themis_triton.core.config import DeviceSlot, PolicyName
from themis_triton.load.traces import TraceOptions
from themis_triton.load.twitter import DIVISORS, WINDOW
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

PIPELINE = "video"
LAUNCHES_S = (2.0, 5.0, 10.0, 20.0, 60.0)
FACTORS: tuple[float | None, ...] = (None, 1.2, 1.4, 1.6, 2.0)
"""None: the default, which follows the launch time."""
QUANTILES = (0.5, 0.9, 0.99, 0.999)
MEAN_S, LARGEST_S = 10, 3
SLOTS = 8
LEAST_RPS = 60.0
"""Of a window, undivided: a surge on less load than one server carries asks for no other server."""


@dataclass(frozen=True, slots=True)
class Case:
    """One simulated run."""

    launch_s: float
    factor: float | None
    second: int


def main() -> None:
    """Measure the trace, simulate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--scale", type=float, default=2.3)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    flags = parser.parse_args()
    seconds = training_surges(np.random.default_rng(flags.seed), flags.windows, LEAST_RPS)
    rises = {f"{launch_s:g}": rise(rates_of_days(1, TRAINING_DAYS) / DIVISORS[PIPELINE], int(launch_s)) for launch_s in LAUNCHES_S}
    cases = [Case(launch_s, factor, second) for launch_s in LAUNCHES_S for factor in FACTORS for second in seconds]
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        runs = list(track(pool.map(partial(run, flags.scale), cases), "simulating", total=len(cases)))
    rows = [summed(cases, runs, launch_s, factor) for launch_s in LAUNCHES_S for factor in FACTORS]
    for row in rows:
        print(f"{row['launch_s']:g} s, factor {row['surge_factor'] or 'default'}: {row['violations']:.4%} at {row['cost']:.0f}")
    draw(rows)
    found = {"rise_within_a_launch": rises, "quantiles": QUANTILES, "rows": rows, "windows": [f"{WINDOW}{second}" for second in seconds]}
    write_result("surges", {"seed": flags.seed, "scale": flags.scale, **found, "versions": versions("numpy", "numba")})


def rise(rates_rps: NDArray[np.float64], launch_s: int) -> list[float]:
    """Quantiles of the largest `LARGEST_S` mean that begins in the next `launch_s`, over the mean of the `MEAN_S` before."""
    before = np.convolve(rates_rps, np.full(MEAN_S, 1 / MEAN_S), mode="valid")
    coming = np.convolve(rates_rps, np.full(LARGEST_S, 1 / LARGEST_S), mode="valid")[MEAN_S - LARGEST_S + 1 :]
    largest = np.lib.stride_tricks.sliding_window_view(coming, launch_s + 1).max(axis=1)
    return [round(float(q), 3) for q in np.quantile(largest / np.maximum(before[: largest.size], 1.0), QUANTILES)]


def run(scale: float, case: Case) -> tuple[int, int, float]:
    """Requests, those outside their SLO, and the cost."""
    config = load_settings(shipped("config") / "themis.yaml")
    slots = tuple(DeviceSlot(f"cpu:{number}", f"cpu:{number}") for number in range(SLOTS))
    config = replace(
        config,
        launch=replace(config.launch, slots=slots) if config.launch is not None else None,
        pipelines=tuple(pipeline for pipeline in config.pipelines if pipeline.name == PIPELINE),
        policy=replace(config.policy, surge_factor=case.factor),
    )
    trace = TraceOptions(f"{WINDOW}{case.second}", scale=scale)
    found = simulated_run(config, trace, WorldFlags(cold_start_s=case.launch_s), False, (PolicyName.THEMIS.value, 0))
    return found.requests, found.violated, found.cost


def summed(cases: Sequence[Case], runs: Sequence[tuple[int, int, float]], launch_s: float, factor: float | None) -> dict[str, Any]:
    """All windows of one launch time and factor: the share of late requests, and the cost."""
    requests, violated, cost = np.sum(
        [run for case, run in zip(cases, runs, strict=True) if (case.launch_s, case.factor) == (launch_s, factor)], axis=0
    )
    return {"launch_s": launch_s, "surge_factor": factor, "violations": violated / requests, "cost": cost}


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """Violations over cost, a line of factors for each launch time, the default marked."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, axes = plt.subplots(figsize=(8, 5))
    for number, launch_s in enumerate(LAUNCHES_S):
        own = [row for row in rows if row["launch_s"] == launch_s]
        fixed, (default,) = [row for row in own if row["surge_factor"]], [row for row in own if not row["surge_factor"]]
        axes.plot([r["cost"] for r in fixed], [late(r) for r in fixed], "o-", color=f"C{number}", label=f"launch {launch_s:g} s")
        for row in fixed:
            axes.annotate(f"{row['surge_factor']:g}", (row["cost"], late(row)), textcoords="offset points", xytext=(5, 4), fontsize=8)
        axes.plot(default["cost"], late(default), "*", color=f"C{number}", markersize=16)
    axes.set(xlabel="cost", ylabel="requests outside the SLO, %", yscale="log", title="Room for surges, days 1 to 14 (star: default)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / "surges.png", dpi=150)


def late(row: dict[str, Any]) -> float:
    """Percent, at least what a logarithmic axis can show."""
    return max(float(row["violations"]) * 100, 1e-4)


if __name__ == "__main__":
    main()
