"""Plans of series-parallel graphs against every configuration tried, and their speed beside the chain's of the same stages.

Run from the repository root: `python benchmarks/solver_graphs.py [PROBLEMS]` (5,000: a minute). Writes results/solver_graphs.json.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from common import versions, write_result
from solver import eight_stages, nlp, paper, timed

from tests.oracles import solver_reference as reference
from tests.property.solver_problems import random_problem
from themis_triton.core.graph import Graph, Parallel, Series, is_chain, text
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import solve_joint

PROBLEMS, SEED, MOST_STAGES = 5000, 2026, 4
COST_TOLERANCE, MS_TOLERANCE = 1e-9, 1e-6


def graph_problems(count: int) -> list[ChainProblem]:
    """Random problems whose graphs have branches."""
    rng, drawn = np.random.default_rng(SEED), list[ChainProblem]()
    while len(drawn) < count:
        problem = random_problem(rng, most_stages=MOST_STAGES, graphs=1.0)
        if problem.graph is not None and not is_chain(problem.graph):
            drawn.append(problem)
    return drawn


def against_brute_force(problems: list[ChainProblem]) -> dict[str, Any]:
    """How many plans have another cost, p99 or feasibility than the best of all configurations, and both times in total."""
    differing, feasible, solver_s, brute_s, dearer = list[str](), 0, 0.0, 0.0, 0
    for problem in problems:
        began = time.perf_counter()
        plan = solve_joint(problem)
        solver_s += time.perf_counter() - began
        began = time.perf_counter()
        best = reference.brute_force(problem)
        brute_s += time.perf_counter() - began
        if plan.feasible != (best is not None):
            differing.append(repr(problem))
        elif best is not None:
            feasible += 1
            same_cost = abs(plan.cost - best.cost) <= COST_TOLERANCE * (1 + abs(best.cost))
            if not same_cost or abs(plan.predicted_p99_ms - best.p99_ms) > MS_TOLERANCE * (1 + best.p99_ms):
                differing.append(repr(problem))
            chain = solve_joint(replace(problem, graph=None))
            dearer += not chain.feasible or chain.cost > plan.cost + COST_TOLERANCE
    shapes = Counter(len(problem.stages) for problem in problems)
    return {
        "problems": len(problems),
        "by_stages": dict(sorted(shapes.items())),
        "feasible": feasible,
        "differing": differing,
        "dearer_or_infeasible_as_chain": dearer,
        "solver_s": round(solver_s, 2),
        "brute_force_s": round(brute_s, 2),
    }


def speeds() -> dict[str, Any]:
    """Latency, price and time of the plans of the same stages as a chain and as graphs."""
    small, large = paper(nlp(), 700.0, 100.0), paper(eight_stages(), 1000.0, 200.0)
    first, *others = (stage.name for stage in small.stages)
    n = [stage.name for stage in large.stages]
    inner = Parallel((Series((n[1], n[2], n[3])), Series((n[4], n[5], n[6]))))
    nested = Parallel((Series((n[1], Parallel((n[2], n[3])))), Series((n[4], Parallel((n[5], n[6]))))))
    cases: dict[str, tuple[ChainProblem, Graph | None]] = {
        "three_chain": (small, None),
        "three_branches": (small, Series((first, Parallel(tuple(others))))),
        "eight_chain": (large, None),
        "eight_diamond": (large, Series((n[0], inner, n[7]))),
        "eight_nested": (large, Series((n[0], nested, n[7]))),
        "eight_pairs": (large, Series(tuple(Parallel((n[i], n[i + 1])) for i in range(0, 8, 2)))),
        "eight_side_by_side": (large, Parallel(tuple(n))),
    }
    return {name: _speed(replace(problem, graph=graph)) for name, (problem, graph) in cases.items()}


def _speed(problem: ChainProblem) -> dict[str, Any]:
    plan = solve_joint(problem)
    return {
        "graph": text(problem.graph) if problem.graph is not None else "chain",
        "feasible": plan.feasible,
        "cost": round(plan.cost, 3),
        "predicted_p99_ms": round(plan.predicted_p99_ms, 1),
        **timed(lambda: solve_joint(problem), 300),
    }


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PROBLEMS
    solve_joint(graph_problems(1)[0])
    measured = {"versions": versions("numba", "numpy"), "brute_force": against_brute_force(graph_problems(count)), "speeds": speeds()}
    path = write_result("solver_graphs", measured)
    print({key: len(value) if key == "differing" else value for key, value in measured["brute_force"].items()})
    for name, numbers in measured["speeds"].items():
        print(f"{name:20} {numbers['median_us']:>9.1f} µs  cost {numbers['cost']:>9.2f}  p99 {numbers['predicted_p99_ms']:>7.1f} ms")
    print(path)
    if measured["brute_force"]["differing"]:
        raise SystemExit("plans differ from the best of all configurations")


if __name__ == "__main__":
    main()
