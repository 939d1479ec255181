"""From problem values to the kernels' arrays. Arrays of the stages alone are kept, so that a new demand costs microseconds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from themis_triton.core.errors import SolverError
from themis_triton.core.graph import Graph, Series, beside, parts_of
from themis_triton.solver.problem import ChainProblem, Placement, StageProblem, ThroughputRule
from themis_triton.solver.queueing import RATE_FALLING, RATE_GROWING, WANTED, gather_table, queueing_code, stage_tail
from themis_triton.solver.stage_kernels import OTHER_RPS, Chain
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray

Batches = Sequence[Sequence[int] | None]
_ANY_TOTAL = int(np.iinfo(np.int64).max)
_BUSY_STEP = 32
"""Of the busy instances of others that arrays are made for: their number differs at every tick."""


@dataclass(frozen=True, slots=True)
class PackedStages:
    """Arrays of the stages; `stages` is kept so that no other object gets its identity. `tail`: see `stage_tail`.

    `slower`: see `ChainProblem.only_slower_with_rate`.
    """

    stages: tuple[StageProblem, ...]
    latency: FloatArray
    gather: FloatArray
    ints: IntArray
    floats: FloatArray
    allowed: BoolArray
    tail: float
    slower: bool


def pack(
    problem: ChainProblem,
    *,
    rate_rps: float | None = None,
    servers: int | Sequence[int] | None = None,
    instances: Sequence[int] | None = None,
    batches: Batches | None = None,
    min_instances: Sequence[int] | None = None,
) -> Chain:
    """The problem as arrays; `rate_rps` replaces its demand, the others fix or restrict a choice.

    `batches`: allowed sizes per stage. `min_instances`: lower bounds of the counts, as far as the upper bounds allow.
    """
    arrays = _arrays(problem)
    ints, allowed = arrays.ints.copy(), arrays.allowed
    if problem.placement is Placement.SEPARATE or servers is not None:
        counts = np.asarray(servers if servers is not None else (), dtype=np.int64)
        ints[:, 2] = counts if servers is not None else problem.min_servers
        ints[:, 3] = counts if servers is not None else problem.max_servers
    if instances is not None:
        ints[:, 0] = ints[:, 1] = _checked_instances(problem, instances)
    if min_instances is not None:
        ints[:, 0] = np.minimum(np.maximum(ints[:, 0], np.asarray(min_instances, dtype=np.int64)), ints[:, 1])
    if batches is not None:
        restriction = (id(problem.stages), tuple(map(_hashable, batches)))
        allowed = problem.packed.get(restriction, lambda: _restricted(problem, arrays.allowed, batches))
    rate = problem.demand_rps if rate_rps is None else rate_rps
    rule, floats = _rule(problem, servers, arrays), arrays.floats
    if problem.other_rps:
        floats = floats.copy()
        floats[:, OTHER_RPS] = problem.other_rps
    return Chain(arrays.latency, arrays.gather, ints, floats, allowed, _rates(problem, rate, arrays.tail), rule)


def _rates(problem: ChainProblem, rate_rps: float, tail: float) -> FloatArray:
    memory = math.inf if problem.device_memory_bytes is None else float(problem.device_memory_bytes)
    required = problem.required_capacity_rps(rate_rps)
    headroom = (problem.headroom_sigmas, problem.headroom_rps)
    return np.array([problem.slo_ms, rate_rps, rate_rps, required, tail, memory, problem.dispersion, *headroom])


def set_rate(rates: FloatArray, problem: ChainProblem, rate_rps: float) -> None:
    """Change the demand of a packed problem, by `Chain.rate`."""
    rates[RATE_GROWING] = rates[RATE_FALLING] = rate_rps
    rates[WANTED] = problem.required_capacity_rps(rate_rps)


def _rule(problem: ChainProblem, servers: int | Sequence[int] | None, arrays: PackedStages) -> IntArray:
    cores = problem.throughput is ThroughputRule.CORES
    max_total = problem.max_servers if servers is None else _ANY_TOTAL
    elsewhere, shared = (0, 0) if cores else (problem.busy_elsewhere, problem.extra_places)
    form = (queueing_code(problem.queueing), cores, problem.paper_rounding)
    return np.array([*form, elsewhere, max_total, problem.processes, shared, arrays.slower], dtype=np.int64)


def _arrays(problem: ChainProblem) -> PackedStages:
    key = (
        *(id(problem.stages), problem.graph, problem.queueing, problem.percentile, problem.placement, problem.throughput),
        -(-problem.busy_elsewhere // _BUSY_STEP),
    )
    packed: PackedStages = problem.packed.get(key, lambda: _build(problem))
    return packed


def _build(problem: ChainProblem) -> PackedStages:
    stages = problem.stages
    largest = max(stage.max_batch for stage in stages)
    counts = [stage.max_instances for stage in stages]
    elsewhere = -(-problem.busy_elsewhere // _BUSY_STEP) * _BUSY_STEP
    columns = (sum(counts) if problem.placement is Placement.COLOCATED else max(counts)) + elsewhere
    surfaces = [stage.surface for stage in stages] + [stage.mean_surface or stage.surface for stage in stages]
    latency = np.stack([surface.extended(largest, columns)[:largest, :columns] for surface in surfaces])
    if problem.throughput is ThroughputRule.INSTANCES:
        latency = np.maximum.accumulate(latency, axis=2)  # noise must not make a busier device look faster
    if problem.queueing.predicts_busy:
        latency = np.maximum.accumulate(latency, axis=1)  # nor a larger batch: waits must grow with the rate
    allowed = np.array([[b <= stage.max_batch for b in range(1, largest + 1)] for stage in stages])
    joins, others = [*_joins(problem), (0, 0, 0)], _others(problem)
    rows = zip(stages, joins, others, strict=True)
    ints = np.array([[s.min_instances, s.max_instances, 1, 1, *join, number] for s, join, number in rows], dtype=np.int64)
    floats = [
        (s.server_price, s.instance_price, s.instance_memory_bytes, s.max_queue_delay_ms, s.demand_ratio, s.in_turn, 0.0, s.most_calls)
        for s in stages
    ]
    shape = (problem.queueing, problem.percentile, largest)
    gather = problem.packed.get(shape, lambda: gather_table(*shape))
    tail = stage_tail(problem.percentile, problem.calls_in_turn) / problem.side_by_side
    arrays = np.ascontiguousarray(latency), gather, ints, np.array(floats, dtype=np.float64), allowed
    return PackedStages(stages, *arrays, tail, problem.only_slower_with_rate)


def _others(problem: ChainProblem) -> list[int]:
    """The other stages that a request runs at the same time on the same device, by stage."""
    if problem.graph is None or problem.placement is not Placement.COLOCATED:
        return [0] * len(problem.stages)
    others = beside(problem.graph)
    return [others[stage.name] for stage in problem.stages]


def _joins(problem: ChainProblem) -> list[tuple[int, int, int]]:
    """(left node, right node, 1 where the larger latency counts) of each join; see `join_kernels`."""
    if problem.graph is None:
        nodes = [0, *range(len(problem.stages), 2 * len(problem.stages) - 2)]
        return [(node, s, 0) for s, node in enumerate(nodes, 1)] if len(problem.stages) > 1 else []
    index, joins = {stage.name: s for s, stage in enumerate(problem.stages)}, list[tuple[int, int, int]]()

    def node(graph: Graph) -> int:
        if isinstance(graph, str):
            return index[graph]
        parts, side_by_side = parts_of(graph), int(not isinstance(graph, Series))
        left = node(parts[0])
        for part in parts[1:]:
            joins.append((left, node(part), side_by_side))
            left = len(index) + len(joins) - 1
        return left

    node(problem.graph)
    return joins


def _checked_instances(problem: ChainProblem, instances: Sequence[int]) -> Sequence[int]:
    for stage, count in zip(problem.stages, instances, strict=True):
        if not 1 <= count <= stage.max_instances:
            raise SolverError(f"stage {stage.name}: {count} instances; allowed is 1..{stage.max_instances}")
    return instances


def _hashable(sizes: Sequence[int] | None) -> Hashable:
    """Batch sizes as a key; ranges are one as they are."""
    return sizes if sizes is None or isinstance(sizes, range) else tuple(sizes)


def _restricted(problem: ChainProblem, allowed: BoolArray, batches: Batches) -> BoolArray:
    restricted = allowed.copy()
    for s, (stage, sizes) in enumerate(zip(problem.stages, batches, strict=True)):
        if sizes is None:
            continue
        if not sizes or not all(1 <= size <= stage.max_batch for size in sizes):
            raise SolverError(f"stage {stage.name}: batch sizes {list(sizes)}; allowed are one or more of 1..{stage.max_batch}")
        restricted[s] = False
        restricted[s, [size - 1 for size in sizes]] = True
    return restricted
