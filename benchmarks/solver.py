"""How long the solvers take, and how many times faster the kernels are than the same mathematics in plain Python.

Run from the repository root: `python benchmarks/solver.py` (about two minutes). Writes results/solver.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import versions, write_result

from themis_triton.compilation import compile_kernels
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import QueueingModel
from themis_triton.jit import Group
from themis_triton.solver.fleet import ServerAssignment, evaluate_fleet
from themis_triton.solver.migration import solve_migration
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.slot_allocation import PoolMember, solve_pool
from themis_triton.solver.solve import evaluate, solve_joint, solve_vertical
from themis_triton.solver.surface import contention_surface, paper_surface

sys.path.append(str(Path(__file__).parents[1]))

from tests.oracles import solver_reference as reference

NLP = (
    ("language-identification", (10.198960632530234, -0.17485138293060007, 13.469590595875898, 6.288354904859383), 2.0),
    ("translation", (136.47672902324115, 31.94060271850336, -6.738180020281133, 3.1005961247644223), 2.0),
    ("sentiment-analysis", (14.087047607935133, 2.3380347321626926, -1.8101831317359833, 1.442639653204678), 1.0),
)


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median and 10th to 90th percentile of single calls, in µs."""
    call()
    spans = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        spans.append((time.perf_counter() - began) * 1e6)
    low, median, high = np.percentile(spans, [10, 50, 90])
    return {"median_us": round(float(median), 1), "p10_us": round(float(low), 1), "p90_us": round(float(high), 1), "calls": repeats}


def paper(stages: tuple[StageProblem, ...], slo_ms: float, rate_rps: float) -> ChainProblem:
    """The paper's rules: a replica a stage, cores, exponential queueing, rounded throughput and demand."""
    return ChainProblem(
        stages,
        slo_ms,
        rate_rps,
        queueing=QueueingModel.EXPONENTIAL,
        placement=Placement.SEPARATE,
        throughput=ThroughputRule.CORES,
        max_servers=10_000,
        headroom_sigmas=1.0,
        paper_rounding=True,
    )


def nlp() -> tuple[StageProblem, ...]:
    return tuple(
        StageProblem(name, paper_surface(*curve), 1, 4, 4, server_price=memory, instance_price=18.0) for name, curve, memory in NLP
    )


def eight_stages() -> tuple[StageProblem, ...]:
    rng = np.random.default_rng(1)
    curves = [(rng.uniform(5, 60), rng.uniform(0.5, 10), rng.uniform(0, 10), rng.uniform(1, 10)) for _ in range(8)]
    return tuple(
        StageProblem(f"stage-{s}", paper_surface(*curve, max_batch=64, max_cores=16), 1, 16, 64, rng.uniform(1, 4), rng.uniform(10, 20))
        for s, curve in enumerate(curves)
    )


def video(most: int, scale: float = 1.0) -> tuple[StageProblem, ...]:
    return (
        StageProblem("detector", contention_surface(4 * scale, 8 * scale, 4 * scale, 20 * scale, 8, 2 * most), 1, most, 8),
        StageProblem("classifier", contention_surface(2 * scale, 4 * scale, 2 * scale, 10 * scale, 8, 2 * most), 1, most, 8),
    )


def pipelines(count: int, rate_rps: float) -> list[PoolMember]:
    rng = np.random.default_rng(4)
    return [
        PoolMember(
            ChainProblem(video(4, rng.uniform(0.6, 1.4)), 300.0, rng.uniform(5, rate_rps), headroom_sigmas=1.0), float(rng.integers(1, 4))
        )
        for _ in range(count)
    ]


def reference_best(problem: ChainProblem) -> float:
    """A DP over a grid of 1 ms in plain Python, of the paper's form: its latencies are whole ms, so that the grid is exact."""
    cells = int(problem.slo_ms)
    best = [0.0] * (cells + 1)
    for s, stage in enumerate(problem.stages):
        options = []
        for c in range(stage.min_instances, stage.max_instances + 1):
            for b in range(1, stage.max_batch + 1):
                capacity = reference.server_capacity_rps(problem, stage, reference.Choice(1, c, b), c)
                if capacity > 0:
                    n = max(1, -int(-reference.wanted_rps(problem, stage, problem.demand_rps) // capacity))
                    ms, enough = reference.stage_part(problem, s, reference.Choice(n, c, b), c)
                    if enough and ms <= cells:
                        options.append((int(ms), n * (stage.server_price + c * stage.instance_price)))
        best = [min((best[cell - ms] + price for ms, price in options if ms <= cell), default=float("inf")) for cell in range(cells + 1)]
    return best[cells]


def against_python(problem: ChainProblem, fast: dict[str, float]) -> dict[str, Any]:
    cost = solve_joint(problem).cost
    if abs(reference_best(problem) - cost) > 1e-6:
        raise SystemExit(f"the reference disagrees: {reference_best(problem)} against {cost}")
    slow = timed(lambda: reference_best(problem), 20)
    return {**fast, "plain_python": slow, "times_faster": round(slow["median_us"] / fast["median_us"], 0)}


def compilation() -> dict[str, float]:
    """`themis warm` with an empty cache and with a full one: wall-clock seconds on this machine's cores, and processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [_warm(folder) for _ in range(4)]
    cold, warm = runs[0], runs[1:]
    return {
        "cold_s": round(cold[0], 1),
        "cold_processor_s": round(cold[1], 1),
        "cached_s": round(float(np.median([wall for wall, _ in warm])), 2),
        "goal_cold_s": 30,
    }


def _warm(folder: str) -> tuple[float, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "themis_triton.cli", "warm", "--json"]
    done = subprocess.run(command, env={**os.environ, "NUMBA_CACHE_DIR": folder}, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"]), processor_s


def measure() -> dict[str, Any]:
    small, large, colocated = paper(nlp(), 700.0, 100.0), paper(eight_stages(), 2000.0, 200.0), ChainProblem(video(8), 300.0, 100.0)
    enough, short = pipelines(50, 30.0), pipelines(50, 90.0)
    assignments = [ServerAssignment(f"server-{i}", (ModelState(2, 8), ModelState(1, 8))) for i in range(4)]
    return {
        "nlp_joint": {"goal_us": 40, **against_python(small, timed(lambda: solve_joint(small), 2000))},
        "nlp_horizontal_one_core": timed(lambda: solve_joint(small, instances=[1, 1, 1]), 2000),
        "nlp_vertical_infeasible": {"goal_us": 200, **timed(lambda: solve_vertical(small, [2, 4, 1]), 2000)},
        "eight_stages_b64_c16": {"goal_us": 5000, **against_python(large, timed(lambda: solve_joint(large), 200))},
        "pool_50_on_64": {"goal_us": 50_000, **timed(lambda: solve_pool(enough, 64), 20)},
        "pool_50_on_64_too_few": {"goal_us": 50_000, **timed(lambda: solve_pool(short, 64), 10)},
        "colocated_video_joint": timed(lambda: solve_joint(colocated), 200),
        "colocated_video_vertical_infeasible": timed(lambda: solve_vertical(colocated, 1), 50),
        "colocated_video_evaluate": timed(lambda: evaluate(colocated, 2, [2, 2], [4, 4]), 2000),
        "fleet_of_four_evaluate": timed(lambda: evaluate_fleet(replace(colocated, demand_rps=130.0), assignments), 50),
        "migration_from_four": timed(lambda: solve_migration(replace(colocated, demand_rps=60.0), assignments), 20),
    }


def main() -> None:
    asyncio.run(compile_kernels(tuple(Group), lambda _: None))
    measured: dict[str, Any] = {"versions": versions("numba", "numpy"), "compilation": compilation(), "solvers": measure()}
    path = write_result("solver", measured)
    print(measured["compilation"])
    for name, numbers in measured["solvers"].items():
        print(f"{name:40} {numbers['median_us']:>10.1f} µs  (goal {numbers.get('goal_us', '–')}, ×{numbers.get('times_faster', '–')})")
    print(path)


if __name__ == "__main__":
    main()
