"""Constants that `tune.py` tried, judged anew on training windows that its search had not seen.

`THEMIS_TRACES=… python benchmarks/tune_confirm.py` takes the constants that the search began at and the front that it found, up to a
cost of 1.16 times the clairvoyant's, and simulates them on twelve surges of days 1 to 14 at any rate and six at rates of 100/s and more.
A search over six windows finds what suits those six; this says what suits others.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any

import numpy as np
from common import RESULTS, write_result
from rich.progress import track
from tune import Point, difference, front, run, runs_of, training_surges

from themis_triton.core.config import ForecastName
from themis_triton.load.twitter import WINDOW

MOST_COST = 1.16
ANY, BUSY = 12, 6
BUSY_RPS = 100.0
COLD_START_S = 5.0


def main() -> None:
    """Judge them; `results/tune-confirm.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--jobs", type=int, default=1)
    flags = parser.parse_args()
    rng = np.random.default_rng(flags.seed)
    seconds = training_surges(rng, ANY, 0.0) + training_surges(rng, BUSY, BUSY_RPS)
    tried = [_point(row) for row in json.loads((RESULTS / "tune.json").read_text(encoding="utf-8"))["tried"]]
    chosen = [tried[0], *(point for point in front(tried) if point.cost <= MOST_COST and point != tried[0])]
    with ProcessPoolExecutor(flags.jobs, mp_context=get_context("spawn")) as pool:
        rows = [_judged(pool, point, tried[0], seconds) for point in track(chosen, "judging")]
    write_result("tune-confirm", {"seed": flags.seed, "windows": [f"{WINDOW}{second}" for second in seconds], "rows": rows})
    for row in rows:
        print(f"{row['violations']:.4%} at {row['cost_vs_clairvoyant']:.3f}: {row['changes']}")


def _judged(pool: ProcessPoolExecutor, point: Point, start: Point, seconds: list[int]) -> dict[str, Any]:
    found = np.array(list(pool.map(partial(run, point.values), runs_of(seconds, None, (COLD_START_S,)))))
    return {
        "changes": difference(start.values, point.values),
        "violations": float(found[:, 0].mean()),
        "cost_vs_clairvoyant": float(found[:, 1].mean()),
        "busy": {"violations": float(found[ANY:, 0].mean()), "cost_vs_clairvoyant": float(found[ANY:, 1].mean())},
        "worst_window_violations": float(found[:, 0].max()),
        "searched": {"violations": point.violations, "cost_vs_clairvoyant": point.cost},
    }


def _point(row: dict[str, Any]) -> Point:
    values = row["values"] | {"forecast": ForecastName(row["values"]["forecast"])}
    return Point(values, row["violations"], row["cost_vs_clairvoyant"])


if __name__ == "__main__":
    main()
