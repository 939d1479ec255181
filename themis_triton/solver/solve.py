"""The solvers' front door: problems in, plans out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from themis_triton.core.config import QueueingModel
from themis_triton.core.errors import SolverError
from themis_triton.solver import entry
from themis_triton.solver.pack import Batches, pack
from themis_triton.solver.plans import Binding, ChainPlan, Evaluation, RunnerUp, StagePlan, VerticalPlan
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem

RATE_LIMIT = 10**9
SERVERS_TRIED = 4096
TOTAL_TRIED = 512  # in total where waits fall with every server, so that every number is a choice
SLACK = 1e-9


def solve_joint(
    problem: ChainProblem,
    *,
    servers: int | Sequence[int] | None = None,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> ChainPlan:
    """The cheapest (n, c, b) a stage that carries the demand inside the SLO; equal costs go to the lower predicted p99.

    `servers` fixes n (a number, or one a stage where stages are separate), `instances` fixes c a stage, `batches` restricts b a
    stage (None: all). At rate 0 the bounds' minimum answers. Infeasible: a best effort and the constraint that binds.
    """
    out = _joint(problem, servers, instances, batches)
    if out[-1][0] > 0:
        return _plan(problem, out, feasible=True)
    return _best_effort(problem, servers, instances, batches)


def solve_vertical(
    problem: ChainProblem,
    servers: int | Sequence[int],
    *,
    instances_at_least: Sequence[int] | None = None,
    batches: Batches | None = None,
) -> VerticalPlan:
    """The fewest instances (by price) on servers that are given: a number, or one a stage where stages are separate.

    `instances_at_least` keeps counts from shrinking. Infeasible: the largest demand that is feasible, exact to 1 request/s and never
    above the problem's own; the plan for it; and the servers missing for the whole demand.
    """
    bounded = _raised(problem, instances_at_least)
    out = _joint(bounded, servers, None, batches)
    if out[-1][0] > 0:
        return VerticalPlan(_plan(bounded, out, feasible=True), feasible=True, largest_demand_rps=problem.demand_rps)
    largest = largest_demand(bounded, servers, batches=batches)
    plan = _best_effort(bounded, servers, None, batches)
    missing, by_stage = _missing(bounded, servers, batches)
    return VerticalPlan(plan, feasible=False, largest_demand_rps=max(0.0, largest), servers_missing=missing, stage_servers_missing=by_stage)


def largest_demand(
    problem: ChainProblem,
    servers: int | Sequence[int] | None,
    *,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
    at_most_rps: float | None = None,
) -> float:
    """The largest whole rate that the servers carry inside the SLO, headroom included, up to `at_most_rps` (the problem's demand).

    `servers` None: as many as the problem allows.
    −1 when not even an idle chain meets the SLO. With `instances` and `batches` fixed it is the capacity of what runs now.
    """
    limit = min(int(problem.demand_rps if at_most_rps is None else at_most_rps), RATE_LIMIT)
    chain = pack(problem, servers=servers, instances=instances, batches=batches)
    if problem.placement is Placement.COLOCATED:
        number = problem.max_servers if servers is None else _number(servers)
        return float(entry.largest_rate(*chain, entry.TOGETHER, number, limit))
    return float(entry.largest_rate(*chain, entry.IN_TOTAL if servers is None else entry.BY_STAGE, 0, limit))


def evaluate(
    problem: ChainProblem, servers: int | Sequence[int], instances: Sequence[int], batches: Sequence[int], *, rate_rps: float | None = None
) -> Evaluation:
    """Predicted p99, capacity and cost of a given configuration at a rate (the problem's demand). Counts may exceed the plan's bounds."""
    bounded = _widened(problem, instances, batches)
    if rate_rps is not None:
        bounded = replace(bounded, demand_rps=rate_rps)
    colocated = problem.placement is Placement.COLOCATED
    numbers = np.broadcast_to(np.asarray(servers, dtype=np.int64), (len(problem.stages),)).copy()
    chain = pack(bounded, servers=servers)
    rows = entry.judge(*chain, colocated, numbers, np.asarray(instances, dtype=np.int64), np.asarray(batches, dtype=np.int64))
    stages = _stage_plans(bounded, rows.tolist())
    p99 = sum(stage.latency_ms + stage.queueing_ms for stage in stages)
    fits = _memory_used(bounded, instances) <= (math.inf if problem.device_memory_bytes is None else problem.device_memory_bytes)
    feasible = fits and p99 <= problem.slo_ms + 1e-6 and _throughput_slack(bounded, stages) >= 1 - SLACK
    return Evaluation(feasible, p99, _capacity(bounded, stages), _cost(bounded, stages), stages)


def warm(*, everything: bool = False) -> None:
    """Compile (or load from the cache) this module's kernels, with `everything` those of `fleet` and `pool` too.

    About half a minute once on two cores, then well under a second.
    """
    from themis_triton.solver.warm import warm_up  # noqa: PLC0415 - it imports this module

    warm_up(everything=everything)


def _joint(
    problem: ChainProblem, servers: int | Sequence[int] | None, instances: Sequence[int] | None, batches: Batches | None
) -> list[list[float]]:
    chain = pack(problem, servers=servers, instances=instances, batches=batches)
    if problem.placement is Placement.SEPARATE:
        out = entry.joint_separate(*chain)
    else:
        low, high = (problem.min_servers, problem.max_servers) if servers is None else (_number(servers), _number(servers))
        out = entry.joint_colocated(*chain, low, high)
    rows: list[list[float]] = out.tolist()
    return rows


def _number(servers: int | Sequence[int]) -> int:
    if isinstance(servers, int):
        return servers
    raise SolverError("servers of a co-located chain are one number; counts a stage belong to separate stages")


def _plan(problem: ChainProblem, out: list[list[float]], *, feasible: bool) -> ChainPlan:
    stages = _stage_plans(problem, out[:-1])
    _, cost, p99, other, other_cost, other_p99 = out[-1]
    runner_up = RunnerUp(int(other), other_cost, other_p99) if other > 0 else None
    binding = _binding_of(problem, stages, p99)
    return ChainPlan(feasible, stages, cost, p99, _capacity(problem, stages), binding, runner_up)


def _stage_plans(problem: ChainProblem, rows: list[list[float]]) -> tuple[StagePlan, ...]:
    return tuple(
        StagePlan(stage.name, int(n), int(c), int(b), service, wait, capacity)
        for stage, (n, c, b, service, wait, capacity) in zip(problem.stages, rows, strict=True)
    )


def _capacity(problem: ChainProblem, stages: tuple[StagePlan, ...]) -> float:
    shares = [p.capacity_rps / s.demand_ratio for s, p in zip(problem.stages, stages, strict=True) if s.demand_ratio > 0]
    return min(shares, default=math.inf)


def _cost(problem: ChainProblem, stages: tuple[StagePlan, ...]) -> float:
    instances = sum(p.servers * p.instances * s.instance_price for s, p in zip(problem.stages, stages, strict=True))
    if problem.placement is Placement.COLOCATED:
        return stages[0].servers * problem.stages[0].server_price + instances
    return sum(p.servers * s.server_price for s, p in zip(problem.stages, stages, strict=True)) + instances


def _memory_used(problem: ChainProblem, instances: Sequence[int]) -> float:
    by_stage = [c * s.instance_memory_bytes for s, c in zip(problem.stages, instances, strict=True)]
    return sum(by_stage) if problem.placement is Placement.COLOCATED else max(by_stage)


def _throughput_slack(problem: ChainProblem, stages: tuple[StagePlan, ...]) -> float:
    """Least capacity over what is wanted, as a factor."""
    rate, wanted = problem.demand_rps, problem.capacity_wanted(problem.demand_rps)
    factors = []
    for stage, plan in zip(problem.stages, stages, strict=True):
        needed = stage.demand_ratio * rate + (wanted - rate) * max(stage.demand_ratio, math.sqrt(stage.demand_ratio))
        factors.append(plan.capacity_rps / needed if needed > 0 else math.inf)
    return min(factors)


def _binding_of(problem: ChainProblem, stages: tuple[StagePlan, ...], p99_ms: float) -> Binding:
    at_least = all(p.instances == s.min_instances and p.servers == problem.min_servers for s, p in zip(problem.stages, stages, strict=True))
    if at_least:
        return Binding.BOUNDS
    return Binding.THROUGHPUT if _throughput_slack(problem, stages) < problem.slo_ms / max(p99_ms, SLACK) else Binding.LATENCY


def _best_effort(
    problem: ChainProblem, servers: int | Sequence[int] | None, instances: Sequence[int] | None, batches: Batches | None
) -> ChainPlan:
    binding = _infeasible_because(problem, servers, instances, batches)
    largest = largest_demand(problem, servers, instances=instances, batches=batches)
    if largest >= 0:
        eased = replace(problem, demand_rps=largest)
        out = _joint(eased, servers, instances, batches)
        if out[-1][0] > 0:
            return replace(_plan(eased, out, feasible=False), binding=binding)
    numbers = servers if servers is not None else _most_servers(problem)
    counts = instances or [stage.min_instances for stage in problem.stages]
    sizes = [min(allowed) if allowed else 1 for allowed in (batches or [None] * len(problem.stages))]
    judged = evaluate(problem, numbers, counts, sizes)
    return ChainPlan(False, judged.stages, judged.cost, judged.predicted_p99_ms, judged.capacity_rps, binding)


def _everywhere(problem: ChainProblem, servers: int) -> int | list[int]:
    return servers if problem.placement is Placement.COLOCATED else [servers] * len(problem.stages)


def _most_servers(problem: ChainProblem) -> int | list[int]:
    separate = problem.placement is Placement.SEPARATE
    return _everywhere(problem, max(1, problem.max_servers // len(problem.stages)) if separate else problem.max_servers)


def _infeasible_because(
    problem: ChainProblem, servers: int | Sequence[int] | None, instances: Sequence[int] | None, batches: Batches | None
) -> Binding:
    def holds(changed: ChainProblem) -> bool:
        return _joint(changed, servers, instances, batches)[-1][0] > 0

    if problem.device_memory_bytes is not None and holds(replace(problem, device_memory_bytes=None)):
        return Binding.MEMORY
    if servers is None and _joint(problem, _everywhere(problem, SERVERS_TRIED), instances, batches)[-1][0] > 0:
        return Binding.DEVICES
    return Binding.THROUGHPUT if holds(replace(problem, demand_rps=0.0, headroom_rps=0.0)) else Binding.LATENCY


def _missing(problem: ChainProblem, servers: int | Sequence[int], batches: Batches | None) -> tuple[int | None, tuple[int, ...]]:
    if problem.placement is Placement.SEPARATE:
        return _missing_by_stage(problem, servers, batches)
    held = _number(servers)
    low, high = held, held + SERVERS_TRIED
    if _joint(problem, high, None, batches)[-1][0] == 0:
        return None, ()
    while high - low > 1:
        middle = (low + high) // 2
        if _joint(problem, middle, None, batches)[-1][0] > 0:
            high = middle
        else:
            low = middle
    return high - held, ()


def _missing_by_stage(problem: ChainProblem, servers: int | Sequence[int], batches: Batches | None) -> tuple[int | None, tuple[int, ...]]:
    """The fewest servers in total that the whole demand needs beyond those held."""
    held = np.broadcast_to(np.asarray(servers, dtype=np.int64), (len(problem.stages),)).tolist()
    triton = problem.queueing is QueueingModel.TRITON
    most = sum(held) if triton else RATE_LIMIT
    while most <= (TOTAL_TRIED if triton else RATE_LIMIT):
        most *= 2
        chain = pack(replace(problem, max_servers=most), batches=batches)
        chain.ints[:, 2] = held
        counted = chain.floats.copy()
        counted[:, 0], counted[:, 1] = 1.0, 0.0
        out = entry.joint_separate(*chain._replace(floats=counted)).tolist()
        if out[-1][0] > 0:
            by_stage = tuple(int(row[0]) - n for row, n in zip(out[:-1], held, strict=True))
            return sum(by_stage), by_stage
    return None, ()


def _raised(problem: ChainProblem, at_least: Sequence[int] | None) -> ChainProblem:
    if at_least is None:
        return problem
    return replace(problem, stages=_cached_stages(problem.stages, tuple(at_least)))


_raised_stages: dict[tuple[int, tuple[int, ...]], tuple[tuple[StageProblem, ...], tuple[StageProblem, ...]]] = {}


def _cached_stages(stages: tuple[StageProblem, ...], at_least: tuple[int, ...]) -> tuple[StageProblem, ...]:
    """Stages with their lower bounds raised (never above the upper ones)."""
    return tuple(
        replace(stage, min_instances=min(max(stage.min_instances, count), stage.max_instances))
        for stage, count in zip(stages, at_least, strict=True)
    )


def _widened(problem: ChainProblem, instances: Sequence[int], batches: Sequence[int]) -> ChainProblem:
    fits = all(c <= s.max_instances and b <= s.max_batch for s, c, b in zip(problem.stages, instances, batches, strict=True))
    if fits:
        return problem
    stages = tuple(
        replace(s, max_instances=max(s.max_instances, c), max_batch=max(s.max_batch, b))
        for s, c, b in zip(problem.stages, instances, batches, strict=True)
    )
    return replace(problem, stages=stages)
