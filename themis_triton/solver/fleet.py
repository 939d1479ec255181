"""Servers that are given and differ: they hold different models, with different counts and batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.errors import SolverError
from themis_triton.core.price import fleet_price
from themis_triton.solver import fleet_kernels
from themis_triton.solver.pack import pack
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem
from themis_triton.solver.surface import IntArray


@dataclass(frozen=True, slots=True)
class ServerAssignment:
    """What one ready server runs, a value a stage: instances now (0: the model is not there) and its largest batch."""

    name: str
    instances: tuple[int, ...]
    batches: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """Counts a server and stage, in the order of the holdings. `cost` counts servers and instances.

    Infeasible: the plan of `largest_demand_rps`, the largest whole rate that was found to hold (0 where not even an idle chain does).
    """

    feasible: bool
    instances: tuple[tuple[int, ...], ...]
    predicted_p99_ms: float
    capacity_rps: float
    cost: float
    largest_demand_rps: float


def solve_fleet(problem: ChainProblem, holdings: Sequence[ServerAssignment], *, never_shrink: bool = False) -> FleetPlan:
    """The fewest instances (by price) on servers that may differ, with the batches that they run now.

    Never dearer than the best plan of equal counts; a search by taking single instances away, so another plan with counts that
    differ may still be cheaper. Stages that a server does not hold stay absent from it. SolverError for separate stages.
    """
    highs = np.array([[stage.max_instances if c else 0 for stage, c in _pairs(problem, held)] for held in holdings], dtype=np.int64)
    lows = np.array([[stage.min_instances if c else 0 for stage, c in _pairs(problem, held)] for held in holdings], dtype=np.int64)
    if never_shrink:
        lows = np.minimum(np.maximum(lows, np.array([held.instances for held in holdings])), highs)
    counts = np.zeros_like(lows)
    feasible, carried = fleet_kernels.fleet_solve(*pack(_widened(problem, holdings)), lows, highs, _batches(holdings), counts)
    rate = problem.demand_rps if feasible else max(0.0, carried)
    chosen = [replace(held, instances=tuple(row)) for held, row in zip(holdings, (counts if carried >= 0 else lows).tolist(), strict=True)]
    found = evaluate_fleet(problem, chosen, rate_rps=rate)
    return replace(found, feasible=bool(feasible), largest_demand_rps=rate)


def evaluate_fleet(problem: ChainProblem, holdings: Sequence[ServerAssignment], *, rate_rps: float | None = None) -> FleetPlan:
    """Predicted p99, capacity and cost of servers as they are, at a rate (the problem's demand)."""
    rate = problem.demand_rps if rate_rps is None else rate_rps
    widened = _widened(problem, holdings)
    counts = np.array([held.instances for held in holdings], dtype=np.int64)
    rows = fleet_kernels.fleet_judge(*pack(widened, rate_rps=rate), counts, _batches(holdings)).tolist()
    p99 = sum(row[0] for row in rows)
    enough = all(capacity >= wanted * (1 - 1e-9) for _, capacity, wanted in rows)
    used = [sum(c * stage.instance_memory_bytes for stage, c in _pairs(problem, held)) for held in holdings]
    fits = problem.device_memory_bytes is None or max(used) <= problem.device_memory_bytes
    shares = [row[1] / stage.demand_ratio for stage, row in zip(problem.stages, rows, strict=True) if stage.demand_ratio > 0]
    return FleetPlan(
        enough and fits and p99 <= problem.slo_ms + 1e-6,
        tuple(held.instances for held in holdings),
        p99,
        min(shares, default=math.inf),
        assignments_price(problem, holdings),
        rate,
    )


def assignments_price(problem: ChainProblem, assignments: Sequence[ServerAssignment]) -> float:
    """The price of servers of a co-located chain per second."""
    server, prices = problem.stages[0].server_price, [stage.instance_price for stage in problem.stages]
    return fleet_price((server, zip(assignment.instances, prices, strict=True)) for assignment in assignments)


def _pairs(problem: ChainProblem, held: ServerAssignment) -> Iterator[tuple[StageProblem, int]]:
    return zip(problem.stages, held.instances, strict=True)


def _batches(holdings: Sequence[ServerAssignment]) -> IntArray:
    return np.array([held.batches for held in holdings], dtype=np.int64)


def _widened(problem: ChainProblem, holdings: Sequence[ServerAssignment]) -> ChainProblem:
    """Bounds that cover what runs, so that the surfaces do too."""
    if problem.placement is not Placement.COLOCATED:
        raise SolverError("servers that differ belong to a co-located chain; for separate stages give solve_vertical a number a stage")
    if not holdings:
        raise SolverError("a fleet needs at least one server")
    most = [max(column) for column in zip(*(held.instances for held in holdings), strict=True)]
    largest = [max(column) for column in zip(*(held.batches for held in holdings), strict=True)]
    if all(c <= s.max_instances and b <= s.max_batch for s, c, b in zip(problem.stages, most, largest, strict=True)):
        return problem
    stages = tuple(
        replace(s, max_instances=max(s.max_instances, c), max_batch=max(s.max_batch, b))
        for s, c, b in zip(problem.stages, most, largest, strict=True)
    )
    return replace(problem, stages=stages)
