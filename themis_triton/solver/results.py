"""From the kernels' rows to plans: capacity, cost, slack and the constraint that binds."""

from __future__ import annotations

import math
from collections.abc import Sequence

from themis_triton.core.price import fleet_price
from themis_triton.solver.plans import Binding, ChainPlan, RunnerUp, StagePlan
from themis_triton.solver.problem import ChainProblem, Placement

SLACK = 1e-9


def plan_of(problem: ChainProblem, rows: list[list[float]], min_counts: Sequence[tuple[int, int]], *, feasible: bool) -> ChainPlan:
    """A plan from its stages' rows and the last one: (found, cost, ms, runner-up's servers, cost, ms).

    `min_counts`: the fewest allowed servers and instances of each stage.
    """
    stages = stage_plans(problem, rows[:-1])
    _, cost, p99, other, other_cost, other_p99 = rows[-1]
    runner_up = RunnerUp(int(other), other_cost, other_p99) if other > 0 else None
    return ChainPlan(feasible, stages, cost, p99, capacity_rps(problem, stages), binding_of(problem, stages, p99, min_counts), runner_up)


def stage_plans(problem: ChainProblem, rows: list[list[float]]) -> tuple[StagePlan, ...]:
    """The stages of a plan, from (n, c, b, service, wait, capacity) rows."""
    return tuple(
        StagePlan(stage.name, int(n), int(c), int(b), service, wait, capacity)
        for stage, (n, c, b, service, wait, capacity) in zip(problem.stages, rows, strict=True)
    )


def capacity_rps(problem: ChainProblem, stages: Sequence[StagePlan]) -> float:
    """Requests/s of the chain that all stages can carry."""
    return problem.chain_capacity_rps(plan.capacity_rps for plan in stages)


def cost_of(problem: ChainProblem, stages: Sequence[StagePlan]) -> float:
    """Price per second of servers and instances."""
    rows = list(zip(problem.stages, stages, strict=True))
    if problem.placement is Placement.COLOCATED:
        each = fleet_price([(problem.stages[0].server_price, [(p.instances, s.instance_price) for s, p in rows])])
        return stages[0].servers * each
    return sum(p.servers * fleet_price([(s.server_price, [(p.instances, s.instance_price)])]) for s, p in rows)


def memory_fits(problem: ChainProblem, instances: Sequence[int]) -> bool:
    """Whether one server's instances fit its device."""
    if problem.device_memory_bytes is None:
        return True
    by_stage = [c * s.instance_memory_bytes for s, c in zip(problem.stages, instances, strict=True)]
    return (sum(by_stage) if problem.placement is Placement.COLOCATED else max(by_stage)) <= problem.device_memory_bytes


def throughput_slack(problem: ChainProblem, stages: Sequence[StagePlan]) -> float:
    """The smallest ratio over the stages of capacity to required capacity."""
    required = [problem.required_stage_rps(s) for s in range(len(stages))]
    return min(plan.capacity_rps / rps if rps > 0 else math.inf for plan, rps in zip(stages, required, strict=True))


def binding_of(problem: ChainProblem, stages: Sequence[StagePlan], p99_ms: float, min_counts: Sequence[tuple[int, int]]) -> Binding:
    """The reason why a feasible plan is not cheaper: its bounds, or the constraint with the least slack."""
    if all((plan.servers, plan.instances) == fewest for plan, fewest in zip(stages, min_counts, strict=True)):
        return Binding.BOUNDS
    return Binding.THROUGHPUT if throughput_slack(problem, stages) < problem.slo_ms / max(p99_ms, SLACK) else Binding.LATENCY
