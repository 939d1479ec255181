"""Constants that `tune.py` tried, evaluated again on training windows that its search had not seen.

`THEMIS_TRACES=… python benchmarks/tune_confirm.py` takes the constants that the search began at and the front that it found, up to a
cost of 1.16 times the clairvoyant's, and simulates them on twelve surges of days 1 to 14 at any rate and six at rates of 100/s and more.
A search over six windows may fit only those six; this shows how the constants do on others. `--also
trend_sigmas=1,scale_in_stabilization_s=30` evaluates the constants in use with these changed, too; `--cold-start-s 20` names a cold
start and may be repeated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import RESULTS, write_result
from rich.progress import track
from tune import SPACE, Point, Values, constants_in_use, difference, front, run, runs_of, training_surges

from themis_triton.core.policy import ForecastName
from themis_triton.load.twitter import WINDOW

MOST_COST = 1.16
ANY, BUSY = 12, 6
BUSY_RPS = 100.0
COLD_START_S = 5.0


def main() -> None:
    """Evaluate them; `results/tune-confirm.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--also", action="append", default=[], type=_changes, metavar="NAME=VALUE,…")
    parser.add_argument("--cold-start-s", action="append", type=float, metavar="S", help=f"default {COLD_START_S:g}")
    flags = parser.parse_args()
    rng = np.random.default_rng(flags.seed)
    seconds = training_surges(rng, ANY, 0.0) + training_surges(rng, BUSY, BUSY_RPS)
    cold_starts_s = flags.cold_start_s or [COLD_START_S]
    in_use = constants_in_use()
    chosen = [in_use, *(in_use | also for also in flags.also), *(point.values for point in _of_the_search())]
    distinct = [values for number, values in enumerate(chosen) if values not in chosen[:number]]
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        rows = [_judged(pool, values, in_use, seconds, cold_starts_s) for values in track(distinct, "judging")]
    write_result("tune-confirm", {"seed": flags.seed, "windows": [f"{WINDOW}{second}" for second in seconds], "rows": rows})
    for row in rows:
        for found in row["cold_starts"]:
            print(f"{found['cold_start_s']:g} s: {found['violations']:.4%} at {found['cost_vs_clairvoyant']:.3f}: {row['changes']}")


def _judged(
    pool: ProcessPoolExecutor, values: Values, in_use: Values, seconds: Sequence[int], cold_starts_s: Sequence[float]
) -> dict[str, Any]:
    cases = runs_of(seconds, None, cold_starts_s)
    found = np.array(list(pool.map(partial(run, values), cases))).reshape(len(cold_starts_s), len(seconds), 2)
    return {
        "changes": difference(in_use, values),
        "cold_starts": [_means(cold_s, outcomes) for cold_s, outcomes in zip(cold_starts_s, found, strict=True)],
    }


def _means(cold_start_s: float, outcomes: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> dict[str, Any]:
    mean, busy = outcomes.mean(axis=0), outcomes[ANY:].mean(axis=0)
    return {
        "cold_start_s": cold_start_s,
        "violations": float(mean[0]),
        "cost_vs_clairvoyant": float(mean[1]),
        "busy": {"violations": float(busy[0]), "cost_vs_clairvoyant": float(busy[1])},
        "worst_window_violations": float(outcomes[:, 0].max()),
    }


def _of_the_search() -> list[Point]:
    tried = [_point(row) for row in json.loads((RESULTS / "tune.json").read_text(encoding="utf-8"))["tried"]]
    return [tried[0], *(point for point in front(tried) if point.cost <= MOST_COST)]


def _point(row: dict[str, Any]) -> Point:
    values = row["values"] | {"forecast": ForecastName(row["values"]["forecast"])}
    return Point(values, row["violations"], row["cost_vs_clairvoyant"])


def _changes(text: str) -> Values:
    """`NAME=VALUE,…`; a value in the form of the search's own."""
    pairs = (pair.partition("=") for pair in text.split(","))
    return {name: _value(name, value) for name, _, value in pairs}


def _value(name: str, text: str) -> float | ForecastName | None:
    if name not in SPACE:
        raise argparse.ArgumentTypeError(f"{name!r} is not searched; allowed: {', '.join(SPACE)}")
    if name == "forecast":
        return ForecastName(text)
    return None if text == "none" else float(text)


if __name__ == "__main__":
    main()
