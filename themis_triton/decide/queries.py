"""The solver's answers to the policies' questions. Demands are rounded up a little, so that the same query is solved once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from themis_triton.core.config import Placement
from themis_triton.decide.demand import Demand
from themis_triton.decide.rules import Rules
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration import Migration, solve_migration
from themis_triton.solver.mixed import MixedPlan, solve_mixed
from themis_triton.solver.plans import ChainPlan, VerticalPlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import fewest_servers, find_vertical, largest_demand, servers_missing, solve_joint, strongest_vertical

CAPACITY_LIMIT_RPS = 100_000.0
SLO_FACTORS = (1.5, 2.0, 3.0, 4.0, 8.0)
ANY_SLO_MS = 1e9
REMEMBERED = 4096
DISPERSION_STEP = 0.25
FINE_RPS, FINE_FRACTION = 0.5, 0.01


@dataclass(frozen=True, slots=True)
class PlanQuery:
    """A demand on a pipeline; `batch_caps` None: any batch of the settings. `free_instances`: only servers have a price.

    `min_servers` stay whatever the plan, because they were adopted.
    """

    pipeline: str
    demand: Demand
    batch_caps: tuple[int, ...] | None
    busy_elsewhere: int = 0
    free_instances: bool = False
    min_servers: int = 1


def joint(rules: Rules, query: PlanQuery, instances: tuple[int, ...] | None) -> ChainPlan:
    """`solve_joint`, with instances fixed or free."""
    return _joint(rules, _rounded(query), instances)


def fewest(rules: Rules, query: PlanQuery) -> tuple[int, ...] | None:
    """The fewest servers a stage, by their price alone, with as many instances as they may run; None where no plan holds."""
    return _fewest(rules, replace(_rounded(query), free_instances=True))


def vertical(rules: Rules, query: PlanQuery, servers: tuple[int, ...], at_least: tuple[int, ...] | None = None) -> VerticalPlan:
    """`solve_vertical`, with no count below `at_least`; infeasible: with the counts of the greatest capacity.

    An SLO that nothing here can meet is never a reason to run less: the counts are then those that carry the demand least late.
    """
    return _vertical(rules, _rounded(query), servers, at_least)


def mixed(rules: Rules, query: PlanQuery, servers: tuple[int, ...]) -> MixedPlan:
    """`solve_mixed`."""
    return _mixed(rules, _rounded(query), servers)


def migration(rules: Rules, query: PlanQuery, now: tuple[ServerAssignment, ...]) -> Migration:
    """`solve_migration` from what runs now, with the times of the pipeline's profiles and the settings' prices."""
    return _migration(rules, _rounded(query), now)


@lru_cache(REMEMBERED)
def carried(rules: Rules, query: PlanQuery, servers: tuple[int, ...], instances: tuple[int, ...]) -> float:
    """The largest whole rate that a configuration carries inside the SLO without headroom; −1: not even none."""
    problem = _problem(rules, query)
    return largest_demand(problem, _counts(problem, servers), instances=instances, batches=_batches(query), at_most_rps=CAPACITY_LIMIT_RPS)


@lru_cache(REMEMBERED)
def _joint(rules: Rules, query: PlanQuery, instances: tuple[int, ...] | None) -> ChainPlan:
    return solve_joint(_problem(rules, query), instances=instances, batches=_batches(query))


@lru_cache(REMEMBERED)
def _fewest(rules: Rules, query: PlanQuery) -> tuple[int, ...] | None:
    return fewest_servers(_problem(rules, query), batches=_batches(query))


@lru_cache(REMEMBERED)
def _vertical(rules: Rules, query: PlanQuery, servers: tuple[int, ...], at_least: tuple[int, ...] | None) -> VerticalPlan:
    problem, batches = _problem(rules, query), _batches(query)
    counts = _counts(problem, servers)
    found = find_vertical(problem, counts, instances_at_least=at_least, batches=batches)
    if found is not None:
        return VerticalPlan(found, feasible=True, largest_demand_rps=problem.demand_rps)
    missing, by_stage = servers_missing(problem, counts, instances_at_least=at_least, batches=batches)
    # Headroom for a backlog must not hide how much can be carried: what waits drains fastest at the greatest capacity.
    anything = Demand(CAPACITY_LIMIT_RPS, 0.0, query.demand.dispersion, 0.0)
    plan, largest = _strongest(rules, replace(query, demand=anything), servers, at_least)
    if largest <= 0.0:
        plan = replace(_least_late(problem, counts, at_least, batches), feasible=False)
    return VerticalPlan(plan, False, max(0.0, largest), missing, by_stage)


def _least_late(
    problem: ChainProblem, counts: int | list[int], at_least: tuple[int, ...] | None, batches: list[list[int]] | None
) -> ChainPlan:
    """Where not even an idle chain meets the SLO: the fewest instances for the demand under the least multiple of the SLO that allows it.

    Where none does, those of the greatest throughput: requests that are late anyway must not also queue without end.
    """
    for factor in SLO_FACTORS:
        eased = replace(problem, slo_ms=factor * problem.slo_ms)
        found = find_vertical(eased, counts, instances_at_least=at_least, batches=batches)
        if found is not None:
            return found
    anything = replace(problem, slo_ms=ANY_SLO_MS, demand_rps=CAPACITY_LIMIT_RPS, headroom_rps=0.0, headroom_sigmas=0.0)
    return strongest_vertical(anything, counts, instances_at_least=at_least, batches=batches)[0]


@lru_cache(REMEMBERED)
def _strongest(rules: Rules, query: PlanQuery, servers: tuple[int, ...], at_least: tuple[int, ...] | None) -> tuple[ChainPlan, float]:
    problem, batches = _problem(rules, query), _batches(query)
    return strongest_vertical(problem, _counts(problem, servers), instances_at_least=at_least, batches=batches)


@lru_cache(REMEMBERED)
def _mixed(rules: Rules, query: PlanQuery, servers: tuple[int, ...]) -> MixedPlan:
    return solve_mixed(_problem(rules, query), servers, query.batch_caps)


@lru_cache(REMEMBERED)
def _migration(rules: Rules, query: PlanQuery, now: tuple[ServerAssignment, ...]) -> Migration:
    pipeline = next(p for p in rules.config.pipelines if p.name == query.pipeline)
    return solve_migration(_problem(rules, query), now, rules.move_times(pipeline), rules.move_prices)


def _problem(rules: Rules, query: PlanQuery) -> ChainProblem:
    problems = rules.server_problems if query.free_instances else rules.problems
    demand = query.demand
    return replace(
        problems[query.pipeline],
        demand_rps=demand.rate_rps,
        headroom_rps=demand.extra_rps,
        headroom_sigmas=demand.sigmas,
        dispersion=demand.dispersion,
        busy_elsewhere=query.busy_elsewhere,
        min_servers=query.min_servers,
        max_servers=max(query.min_servers, problems[query.pipeline].max_servers),
    )


def _counts(problem: ChainProblem, servers: tuple[int, ...]) -> int | list[int]:
    return list(servers) if problem.placement is Placement.SEPARATE else servers[0]


def _batches(query: PlanQuery) -> list[list[int]] | None:
    return None if query.batch_caps is None else [list(range(1, cap + 1)) for cap in query.batch_caps]


def _rounded(query: PlanQuery) -> PlanQuery:
    """A demand of half requests/s, or of steps of one per cent where that is more; the dispersion in quarters. Exact ones as they are."""
    demand = query.demand
    if demand.exact:
        return query
    dispersion = math.ceil(demand.dispersion / DISPERSION_STEP - 1e-9) * DISPERSION_STEP
    return replace(query, demand=Demand(_up(demand.rate_rps), _up(demand.extra_rps), dispersion, demand.sigmas))


def _up(rate_rps: float) -> float:
    if rate_rps <= 0.0:
        return 0.0
    step = max(FINE_RPS, FINE_FRACTION * 2.0 ** math.floor(math.log2(rate_rps)))
    return math.ceil(rate_rps / step - 1e-9) * step
