"""Servers of one stage each whose instance counts may differ by one: the fewest instances on given servers.

Capacity is concave in the count, so that the even distribution of a total over equal servers has the largest capacity; hence
counts `low` and `low + 1` suffice. Waits are not predicted: the problem's SLO must leave room for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter

from themis_triton.core.errors import SolverError
from themis_triton.solver.plans import StagePlan, VerticalTarget
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem
from themis_triton.solver.surface import FloatArray

TOLERANCE = 1e-9

_Choice = tuple[float, float, int, int, int]  # price of the instances, ms, low, extra_instance_servers, batch


@dataclass(frozen=True, slots=True, eq=False)
class _StageTables:
    """One stage; `rps[b - 1, c - 1]` is the capacity of one server, `ms` its latency."""

    stage: StageProblem
    servers: int
    required_rps: float
    ms: FloatArray
    rps: FloatArray

    def at(self, low: int, extra_instance_servers: int, batch: int) -> StagePlan:
        """The stage with `low` instances on each server, and one more on some."""
        slow, fast = self.rps[batch - 1, low - 1], self.rps[batch - 1, min(low, self.rps.shape[1] - 1)]
        capacity = (self.servers - extra_instance_servers) * slow + extra_instance_servers * fast
        ms = float(self.ms[batch - 1, low - 1])
        return StagePlan(self.stage.name, self.servers, low, batch, ms, 0.0, float(capacity), extra_instance_servers=extra_instance_servers)


def solve_mixed(problem: ChainProblem, servers: Sequence[int], batch_caps: Sequence[int] | None = None) -> VerticalTarget:
    """The least price of instances that carries the demand on `servers[s]` servers a stage; equal prices go to the lower latency.

    `batch_caps` bounds the batches. Exact over all counts that differ by one at the most; every combination of the stages' undominated
    choices is tried, which is for a handful of stages. SolverError where stages are co-located.
    """
    if problem.placement is not Placement.SEPARATE:
        raise SolverError("counts that differ by server and stage belong to separate stages; for a co-located chain use solve_vertical")
    caps = batch_caps or [stage.max_batch for stage in problem.stages]
    tables = [_tables(problem, s, n, cap) for s, (n, cap) in enumerate(zip(servers, caps, strict=True))]
    best = _cheapest(problem, [_pareto(table) for table in tables])
    if best is not None:
        return _target(problem, best, feasible=True, missing=(0,) * len(tables))
    strongest = _strongest(problem, tables)
    capacities = [float(table.rps[chosen.batch - 1, -1]) for table, chosen in zip(tables, strongest, strict=True)]
    missing = tuple(
        max(0, math.ceil(table.required_rps / rps - TOLERANCE) - table.servers) for table, rps in zip(tables, capacities, strict=True)
    )
    return _target(problem, strongest, feasible=False, missing=missing)


def _tables(problem: ChainProblem, s: int, servers: int, cap: int) -> _StageTables:
    stage = problem.stages[s]
    batches, counts = min(cap, stage.max_batch), stage.max_instances
    if problem.device_memory_bytes is not None and stage.instance_memory_bytes > 0:
        counts = max(stage.min_instances, min(counts, problem.device_memory_bytes // stage.instance_memory_bytes))
    ms = stage.surface.extended(batches, counts)[:batches, :counts]
    means = (stage.mean_surface or stage.surface).extended(batches, counts)[:batches, :counts]
    return _StageTables(stage, servers, problem.required_stage_rps(s), ms, problem.server_capacity_rps(means))


def _target(problem: ChainProblem, chosen: tuple[StagePlan, ...], *, feasible: bool, missing: tuple[int, ...]) -> VerticalTarget:
    return VerticalTarget(feasible, chosen, missing, _latency_ms(problem, chosen))


def _latency_ms(problem: ChainProblem, chosen: tuple[StagePlan, ...]) -> float:
    return problem.total_ms([stage.latency_ms for stage in chosen])


def _choices(tables: _StageTables) -> Iterator[_Choice]:
    """For each batch and lower count, the fewest servers with one instance more that carry the required rate."""
    batches, counts = tables.rps.shape
    for batch, low in product(range(1, batches + 1), range(tables.stage.min_instances, counts + 1)):
        slow = tables.rps[batch - 1, low - 1]
        lacking = tables.required_rps * (1.0 - TOLERANCE) - tables.servers * slow
        if lacking <= 0.0:
            extra_instance_servers = 0
        elif low < counts and tables.rps[batch - 1, low] > slow:
            extra_instance_servers = math.ceil(lacking / (tables.rps[batch - 1, low] - slow) - TOLERANCE)
        else:
            continue
        if extra_instance_servers < max(1, tables.servers):
            price = (tables.servers * low + extra_instance_servers) * tables.stage.instance_price
            yield price, float(tables.ms[batch - 1, low - 1]), low, extra_instance_servers, batch


def _pareto(tables: _StageTables) -> list[StagePlan]:
    """The choices that no other one beats in price and latency, cheapest first."""
    kept: list[StagePlan] = []
    for _, latency_ms, low, extra_instance_servers, batch in sorted(_choices(tables), key=itemgetter(0, 1)):
        if not kept or latency_ms < kept[-1].latency_ms:
            kept.append(tables.at(low, extra_instance_servers, batch))
    return kept


def _cheapest(problem: ChainProblem, choices: Sequence[Sequence[StagePlan]]) -> tuple[StagePlan, ...] | None:
    prices = [stage.instance_price for stage in problem.stages]
    fitting = [chosen for chosen in product(*choices) if _latency_ms(problem, chosen) <= problem.slo_ms + 1e-6]
    return min(
        fitting,
        key=lambda chosen: (sum(c.total_instances * p for c, p in zip(chosen, prices, strict=True)), _latency_ms(problem, chosen)),
        default=None,
    )


def _strongest(problem: ChainProblem, tables: Sequence[_StageTables]) -> tuple[StagePlan, ...]:
    """All instances on every server, with the batches whose weakest stage carries most inside the SLO; the fastest where none is.

    Then those whose next weakest stage carries most of what is required: its queue would make late what the weakest one carries.
    """
    full = [[table.at(table.rps.shape[1], 0, batch) for batch in range(1, table.rps.shape[0] + 1)] for table in tables]
    every = list(product(*full))
    inside = [chosen for chosen in every if _latency_ms(problem, chosen) <= problem.slo_ms + 1e-6]
    if not inside:
        return min(every, key=lambda chosen: _latency_ms(problem, chosen))
    required = [max(table.required_rps, TOLERANCE) for table in tables]
    return max(
        inside,
        key=lambda chosen: (
            sorted(min(1.0, c.capacity_rps / w) for c, w in zip(chosen, required, strict=True)),
            -_latency_ms(problem, chosen),
        ),
    )
