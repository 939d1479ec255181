"""Every kernel run once on a tiny problem."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import QueueingModel
from themis_triton.solver import solve
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.surface import contention_surface


def warm_up() -> None:
    """Compile or load all kernels: both placements, feasible and not, one price and several."""
    surface = contention_surface(1.0, 1.0, 1.0, 1.0, 2, 4)
    stages = tuple(
        StageProblem(name, surface, max_instances=2, max_batch=2, instance_price=price) for name, price in (("a", 1.0), ("b", 2.0))
    )
    problem = ChainProblem(stages, slo_ms=100.0, demand_rps=10.0, max_servers=2)
    for placement in Placement:
        for queueing in (QueueingModel.TRITON, QueueingModel.EXPONENTIAL):
            here = replace(problem, placement=placement, queueing=queueing)
            solve.solve_joint(here)
            solve.solve_vertical(replace(here, demand_rps=1e5), 1 if placement is Placement.COLOCATED else [1, 1])
            solve.evaluate(replace(here, throughput=ThroughputRule.CORES), 1, [1, 1], [1, 1])
