"""Search for the constants of policy themis on days 1 to 14 of the trace only: the Pareto front of SLO violations and cost.

`THEMIS_TRACES=… python benchmarks/tune.py` starts at the constants of config/paper-*.yaml, changes one to three of a member of the
front at a time, simulates each point on surges of the training days with a cold start of 5 s, and the front again with 2 to 20 s.
Days 15 and 16 are never read. Every evaluated point is kept, with the seed. `--in-place-s 1.2` searches for slow actuators.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from common import RESULTS, constant, versions, with_constants, write_result
from forecast_windows import rates_of_days
from policy_cases import doubles_in_a_minute, has_surge
from rich.progress import track

from themis_triton.commands.simulated_runs import WorldFlags, simulated_run
from themis_triton.core.policy import ForecastName, PolicyName
from themis_triton.load.traces import TraceOptions
from themis_triton.load.twitter import WINDOW, WINDOW_S
from themis_triton.settings import load_settings

CONFIG = Path(__file__).parents[1] / "config"
PIPELINES = ("video", "sentiment", "nlp")
TRAINING_DAYS = 14
KINDS = (has_surge, doubles_in_a_minute)
MEAN_S = 10
COLD_STARTS_S = (2.0, 5.0, 10.0, 20.0)
ENOUGH = 0.0003
"""Share of violations below which the next point to change is chosen by cost alone."""
SPACE: dict[str, tuple[Any, ...]] = {
    "tick_s": (0.1, 0.2, 0.25, 0.5),
    "slo_margin_fraction": (0.2, 0.25, 0.3, 0.35, 0.4),
    "headroom_sigmas": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "server_headroom_sigmas": (0.0, 0.25, 0.5, 1.0),
    "growth_sigmas": (1.0, 2.0, 9.0),
    "trend_sigmas": (1.0, 2.0, 3.0, 9.0),
    "burst_headroom_factor": (1.5, 2.0, 2.5, 3.0, 3.5, 4.0),
    "backlog_drain_s": (0.15, 0.25, 0.4, 0.6, 1.0),
    "backlog_slack_s": (0.0, 0.02, 0.05, 0.1),
    "rate_window_s": (0.5, 1.0),
    "slow_actuation_headroom_sigmas": (0.0, 1.0, 2.0, 2.5, 3.0),
    "deprioritize_after_slo_fraction": (None, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7),
    "shrink_stabilization_s": (0.0, 1.0, 2.0, 5.0),
    "stable_window_s": (5.0, 10.0, 20.0),
    "scale_in_stabilization_s": (10.0, 15.0, 20.0, 30.0, 40.0, 60.0),
    "survivor_margin_fraction": (0.0, 0.05, 0.1, 0.2),
    "forecast": (ForecastName.NONE, ForecastName.LINEAR, ForecastName.CLASSIFIER, ForecastName.QUANTILE),
    "forecast_quantile": (0.5, 0.75, 0.9),
}
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """Constants and their result: means over the runs of the share of violations and of the cost over the clairvoyant's."""

    values: Values
    violations: float
    cost: float


@dataclass(frozen=True, slots=True)
class Case:
    """One simulated run of the search."""

    pipeline: str
    second: int
    cold_start_s: float
    in_place_s: float | None


def main() -> None:
    """Search, then evaluate the front under all cold starts; `results/tune.json`, or `tune-in-place-…s.json`, and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=40)
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--in-place-s", type=float, default=None, help="seconds that a change of cores takes; by default the settings' own")
    parser.add_argument("--least-rps", type=float, default=0.0, help="windows whose mean rate, undivided, is at least this")
    flags = parser.parse_args()
    name = "tune" if flags.in_place_s is None else f"tune-in-place-{flags.in_place_s:g}s"
    rng = np.random.default_rng(flags.seed)
    seconds = training_surges(rng, flags.windows, flags.least_rps)
    cases = partial(runs_of, seconds, flags.in_place_s)
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        tried = list(search(pool, rng, cases((5.0,)), flags.points))
        best = front(tried)
        evaluated = [evaluate(pool, point.values, cases(COLD_STARTS_S)) for point in track(best, "cold starts of 2 to 20 s")]
    draw(tried, evaluated, name)
    write_result(
        name,
        {
            "seed": flags.seed,
            "in_place_s": flags.in_place_s,
            "least_rps": flags.least_rps,
            "windows": [f"{WINDOW}{second}" for second in seconds],
            "tried": [row(point) for point in tried],
            "front_over_cold_starts_2_to_20_s": [row(point) for point in evaluated],
            "versions": versions("numpy", "numba"),
        },
    )


def training_surges(rng: np.random.Generator, count: int, least_rps: float) -> list[int]:
    """First seconds of windows of the training days with a surge, mild and steep ones in turn, without a hole in the trace."""
    rates = rates_of_days(1, TRAINING_DAYS)
    seconds: list[int] = []
    while len(seconds) < count:
        second = int(rng.integers(0, rates.size - WINDOW_S))
        window = rates[second : second + WINDOW_S]
        means = np.convolve(window, np.full(MEAN_S, 1.0 / MEAN_S), mode="valid")
        if window.min() > 0 and window.mean() >= least_rps and KINDS[len(seconds) // len(PIPELINES) % len(KINDS)](means):
            seconds.append(second)
    return seconds


def runs_of(seconds: Sequence[int], in_place_s: float | None, cold_starts_s: Sequence[float]) -> list[Case]:
    """Each window for one pipeline in turn."""
    return [
        Case(PIPELINES[number % len(PIPELINES)], second, cold_s, in_place_s)
        for cold_s in cold_starts_s
        for number, second in enumerate(seconds)
    ]


def search(pool: ProcessPoolExecutor, rng: np.random.Generator, runs: Sequence[Case], points: int) -> Iterator[Point]:
    """The present constants, then changes of members of the front."""
    tried = [evaluate(pool, constants_in_use(), runs)]
    yield tried[0]
    for _ in track(range(points - 1), "searching"):
        values = changed(rng, parent(rng, tried).values)
        if any(point.values == values for point in tried):
            continue
        tried.append(evaluate(pool, values, runs))
        print(f"{tried[-1].violations:.4%} at {tried[-1].cost:.3f}: {difference(tried[0].values, values)}", flush=True)
        yield tried[-1]


def constants_in_use() -> Values:
    """The constants of the search space, as the settings of the paper's pipelines have them."""
    own = load_settings(CONFIG / "paper-video.yaml").policies[PolicyName.THEMIS]
    return {name: constant(own, name) for name in SPACE}


def parent(rng: np.random.Generator, tried: Sequence[Point]) -> Point:
    """Half the time the cheapest with few violations, else any member of the front."""
    good = [point for point in tried if point.violations <= ENOUGH]
    if good and rng.random() < 0.5:
        return min(good, key=lambda point: point.cost)
    members = front(tried)
    return members[int(rng.integers(len(members)))]


def changed(rng: np.random.Generator, values: Values) -> Values:
    """One to three constants replaced by others of their range."""
    names = rng.choice(list(SPACE), size=int(rng.integers(1, 4)), replace=False)
    return values | {str(name): SPACE[name][int(rng.integers(len(SPACE[name])))] for name in names}


def difference(old: Values, new: Values) -> Values:
    """The values that differ."""
    return {name: value for name, value in new.items() if old[name] != value}


def evaluate(pool: ProcessPoolExecutor, values: Values, runs: Sequence[Case]) -> Point:
    """All runs of a point."""
    outcomes = np.array(list(pool.map(partial(run, values), runs)))
    return Point(values, float(outcomes[:, 0].mean()), float(outcomes[:, 1].mean()))


def run(values: Values, case: Case) -> tuple[float, float]:
    """Share of violations, and cost over the clairvoyant's."""
    config = load_settings(CONFIG / f"paper-{case.pipeline}.yaml")
    own = with_constants(config.policies[PolicyName.THEMIS], values)
    config = replace(config, policies={**config.policies, PolicyName.THEMIS: own})
    flags = WorldFlags(cold_start_s=case.cold_start_s, in_place_s=case.in_place_s)
    result = simulated_run(config, TraceOptions(f"{WINDOW}{case.second}"), flags, None, (PolicyName.THEMIS.value, 0))
    return result.violated / max(1, result.requests), result.cost / result.bound_cost


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats in both, cheapest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, p.violations)):
        if not kept or point.violations < kept[-1].violations:
            kept.append(point)
    return kept


def row(point: Point) -> dict[str, Any]:
    """A point for JSON."""
    return {"violations": point.violations, "cost_vs_clairvoyant": point.cost, "values": point.values}


def draw(tried: Sequence[Point], final: Sequence[Point], name: str) -> None:
    """Violations over cost of every point."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, axes = plt.subplots(figsize=(8, 5))
    axes.scatter(
        [p.cost for p in tried], [max(p.violations, 1e-6) * 100 for p in tried], s=14, color="#9aa5b1", label="tried, cold start 5 s"
    )
    best = front(tried)
    axes.plot([p.cost for p in best], [max(p.violations, 1e-6) * 100 for p in best], "o-", color="#1f6feb", label="front")
    axes.scatter(
        [p.cost for p in final],
        [max(p.violations, 1e-6) * 100 for p in final],
        marker="s",
        color="#d1495b",
        label="front, 2 to 20 s",
    )
    axes.set(xlabel="cost over the clairvoyant's", ylabel="requests outside the SLO, %", yscale="log", title="Search on days 1 to 14")
    axes.legend()
    figure.tight_layout()
    figure.savefig(RESULTS / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
