"""Servers that differ: they hold different models, with different counts and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from themis_triton.core.config import ThemisConfig
from themis_triton.core.construction import quick_init
from themis_triton.core.errors import SolverError
from themis_triton.core.estimate import RequestSize
from themis_triton.core.fleet import ModelState, Place
from themis_triton.core.price import fleet_price
from themis_triton.core.replacing import replaced
from themis_triton.plan.memory import memory_limit_bytes
from themis_triton.solver.fleet_kernels import describe_fleet
from themis_triton.solver.pack import pack
from themis_triton.solver.plans import Evaluation
from themis_triton.solver.problem import ChainProblem, Placement


@quick_init
@dataclass(frozen=True, slots=True)
class ServerAssignment:
    """What one ready server runs, a state per stage; with 0 instances the server does not hold the model. Queue delays do not count.

    `memory_limit_bytes`: what the instances may use there; None where only `device_memory_bytes` of the problem limits them.
    """

    name: str
    stages: tuple[ModelState, ...]
    memory_limit_bytes: int | None = None

    @property
    def instances(self) -> tuple[int, ...]:
        """Instances of each stage."""
        return tuple([state.instances for state in self.stages])

    def in_requests(self, sizes: Sequence[RequestSize]) -> ServerAssignment:
        """With batches of so many requests of these sizes in place of rows; none: each request has one row."""
        if not sizes:
            return self
        states = zip(self.stages, sizes, strict=True)
        return replaced(self, stages=tuple(replaced(state, max_batch=size.fitting(state.max_batch)) for state, size in states))


def assignment_of(place: Place, stages: Sequence[str], config: ThemisConfig) -> ServerAssignment:
    """What a place that holds all stages runs, with the memory limit that live steps have there."""
    states = tuple(replaced(place.models[stage], max_queue_delay_us=0, spread=()) for stage in stages)
    return ServerAssignment(place.name, states, memory_limit_bytes(place.server, place.device, config))


def evaluate_fleet(problem: ChainProblem, servers: Sequence[ServerAssignment], *, rate_rps: float | None = None) -> Evaluation:
    """Predicted p99, capacity and cost of co-located servers as they are, at a rate (the problem's demand).

    SolverError for separate stages, and without a server.
    """
    rate = problem.demand_rps if rate_rps is None else rate_rps
    counts, batches = [server.instances for server in servers], [[state.max_batch for state in server.stages] for server in servers]
    chain = pack(_widened(problem, counts, batches), rate_rps=rate)
    rows = describe_fleet(*chain, np.array(counts, dtype=np.int64), np.array(batches, dtype=np.int64)).tolist()
    p99 = problem.total_ms([row[0] for row in rows])
    enough = all(capacity >= required * (1 - 1e-9) for _, capacity, required in rows)
    limit = problem.device_memory_bytes
    fits = limit is None or all(memory_bytes(problem, instances) <= limit for instances in counts)
    return Evaluation(
        feasible=enough and fits and p99 <= problem.slo_ms + 1e-6,
        predicted_p99_ms=p99,
        capacity_rps=problem.chain_capacity_rps(row[1] for row in rows),
        cost=assignments_price(problem, servers),
    )


def assignments_price(problem: ChainProblem, servers: Sequence[ServerAssignment]) -> float:
    """The price of servers of a co-located chain per second."""
    server_price, prices = problem.stages[0].server_price, [stage.instance_price for stage in problem.stages]
    return fleet_price((server_price, zip(server.instances, prices, strict=True)) for server in servers)


def memory_bytes(problem: ChainProblem, instances: Sequence[int]) -> int:
    """Memory of a server's instances."""
    return sum(c * stage.instance_memory_bytes for stage, c in zip(problem.stages, instances, strict=True))


def _widened(problem: ChainProblem, counts: Sequence[Sequence[int]], batches: Sequence[Sequence[int]]) -> ChainProblem:
    """Bounds that cover what runs, so that the surfaces do too."""
    if problem.placement is not Placement.COLOCATED:
        raise SolverError("servers that differ belong to a co-located chain; for separate stages give solve_vertical one number per stage")
    if not counts:
        raise SolverError("a fleet needs at least one server")
    return problem.widened(*([max(column) for column in zip(*rows, strict=True)] for rows in (counts, batches)))
