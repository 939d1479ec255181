"""Every kernel run once on a tiny problem, so that the first tick does not wait for a compiler."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import QueueingModel
from themis_triton.solver import fleet, slot_allocation, solve
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem
from themis_triton.solver.surface import contention_surface


def warm_up(*, everything: bool) -> None:
    """Compile or load the kernels of `solve`; with `everything` those of `fleet` and `pool` too."""
    surface = contention_surface(1.0, 1.0, 1.0, 1.0, 2, 4)
    stages = tuple(StageProblem(name, surface, max_instances=2, max_batch=2) for name in ("first", "second"))
    problem = ChainProblem(stages, slo_ms=100.0, demand_rps=10.0, max_servers=2)
    for placement in Placement:
        for queueing in (QueueingModel.TRITON, QueueingModel.EXPONENTIAL):
            here = replace(problem, placement=placement, queueing=queueing)
            solve.solve_joint(here)
            solve.fewest_servers(here)
            solve.solve_vertical(replace(here, demand_rps=1e5), 1 if placement is Placement.COLOCATED else [1, 1])
            solve.evaluate(here, 1, [1, 1], [1, 1])
    if everything:
        held = fleet.ServerAssignment("warm", (1, 1), (1, 1))
        fleet.solve_fleet(problem, [held])
        fleet.evaluate_fleet(problem, [held])
        slot_allocation.solve_pool([slot_allocation.PoolMember(problem)], 1)
