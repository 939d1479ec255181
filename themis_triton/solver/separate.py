"""Kernels for servers that hold one stage each (the paper's replicas): n, c and b a stage."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.dominance import COST, LATENCY, MEMORY, USED, copy_rows, frontier
from themis_triton.solver.join_kernels import graph_ms
from themis_triton.solver.label_bounds import limits_of
from themis_triton.solver.label_setting import all_labels
from themis_triton.solver.queueing import MEMORY_LIMIT, PAPER_FORM, SLO
from themis_triton.solver.stage_kernels import (
    CORES,
    ELSEWHERE,
    IN_TURN,
    INSTANCE_PRICE,
    MAX_INSTANCES,
    MAX_SERVERS,
    MAX_TOTAL_SERVERS,
    MEMORY_BYTES,
    MIN_INSTANCES,
    MIN_SERVERS,
    QUEUEING,
    SERVER_PRICE,
    Busy,
    Chain,
    best_batch,
    busy_columns,
    required_rps,
    server_capacity_rps,
    servers_for,
    set_arrivals,
    stage_times,
)
from themis_triton.solver.surface import FloatArray, IntArray


@kernel
def separate_columns(chain: Chain, s: int, servers: int, instances: int) -> tuple[int, Busy]:
    """The surface's columns for a stage that is alone on its device: for the capacity, and for the times."""
    if chain.rule[CORES]:
        return instances, Busy(float(instances), float(instances), instances, instances)
    arrivals = np.empty((2, 1))
    set_arrivals(chain, s, 1.0 / servers, arrivals, int(np.int64(0)))
    return instances + chain.rule[ELSEWHERE], busy_columns(chain, chain.latency[s : s + 1], arrivals, instances)


@kernel
def stage_choices(chain: Chain, s: int) -> tuple[FloatArray, IntArray]:
    """Undominated choices of a stage: (cost, ms, servers, 0) rows float64[m, 4], and (n, c, b) rows int64[m, 3]."""
    ints, floats, rule = chain.ints, chain.floats, chain.rule
    required, size = required_rps(chain, s), int(np.int64(0))
    points, picks = np.empty((64, 4)), np.empty((64, 3), dtype=np.int64)
    for c in range(ints[s, MIN_INSTANCES], ints[s, MAX_INSTANCES] + 1):
        if c * floats[s, MEMORY_BYTES] > chain.rate[MEMORY_LIMIT]:
            break
        price, idle = floats[s, SERVER_PRICE] + c * floats[s, INSTANCE_PRICE], c if rule[CORES] else 1 + rule[ELSEWHERE]
        for batch in range(1, chain.allowed.shape[1] + 1):
            if not chain.allowed[s, batch - 1]:
                continue
            capacity = server_capacity_rps(chain, s, c, batch, c if rule[CORES] else c + rule[ELSEWHERE])
            needed = servers_for(required, capacity)
            if needed == 0:
                continue
            previous = np.inf
            for n in range(max(needed, ints[s, MIN_SERVERS]), ints[s, MAX_SERVERS] + 1):
                _, busy = separate_columns(chain, s, n, c)
                service, wait = stage_times(chain, s, busy, n, 1.0 / n, c, batch)
                if service + wait < previous and service + wait <= chain.rate[SLO] + 1.0:
                    if size == points.shape[0]:
                        points, picks = _doubled(points, picks)
                    points[size, COST], points[size, LATENCY], points[size, USED], points[size, MEMORY] = n * price, service + wait, n, 0.0
                    picks[size, 0], picks[size, 1], picks[size, 2] = n, c, batch
                    size += 1
                    previous = service + wait
                if rule[QUEUEING] == PAPER_FORM or (wait == 0.0 and service <= floats[s, IN_TURN] * chain.latency[s, 0, idle - 1]):
                    break
    keep = frontier(points, size, 0.0)
    points_kept, picks_kept = np.empty((keep.shape[0], 4)), np.empty((keep.shape[0], 3), dtype=np.int64)
    copy_rows(points, points_kept, keep)
    copy_rows(picks, picks_kept, keep)
    return points_kept, picks_kept


@kernel
def _doubled(points: FloatArray, picks: IntArray) -> tuple[FloatArray, IntArray]:
    size = points.shape[0]
    more, more_picks = np.empty((2 * size, 4)), np.empty((2 * size, 3), dtype=np.int64)
    _copy_first(points, more, size)
    _copy_first(picks, more_picks, size)
    return more, more_picks


@flat_kernel
def _max_servers(picks: IntArray) -> int:
    largest = 0
    for i in range(picks.shape[0]):
        largest = max(largest, picks[i, 0])
    return largest


@flat_kernel
def _copy_first(source: FloatArray | IntArray, target: FloatArray | IntArray, count: int) -> None:
    for i in range(count):
        for d in range(source.shape[1]):
            target[i, d] = source[i, d]


@flat_kernel
def _all_have_choices(sizes: IntArray) -> bool:
    for s in range(sizes.shape[0]):  # noqa: SIM110 - a generator does not compile
        if sizes[s] == 0:
            return False
    return True


@kernel
def all_choices(chain: Chain, count_servers: bool) -> tuple[FloatArray, IntArray, IntArray]:
    """Every stage's undominated choices: rows float64[S, widest, 4], (n, c, b) int64[S, widest, 3], how many int64[S].

    The servers drop out as a dimension where even the largest choices of all stages fit, unless `count_servers`: costs by the number of
    servers need the plans that are dearer and smaller too.
    """
    stages = chain.ints.shape[0]
    sizes, widest, servers = np.zeros(stages, dtype=np.int64), 1, 0
    choices, picks = np.empty((stages, widest, 4)), np.empty((stages, widest, 3), dtype=np.int64)
    for s in range(stages):
        points, own = stage_choices(chain, s)
        sizes[s] = points.shape[0]
        if sizes[s] > widest:
            wider, wider_picks = np.empty((stages, sizes[s], 4)), np.empty((stages, sizes[s], 3), dtype=np.int64)
            for before in range(s):
                _copy_first(choices[before], wider[before], sizes[before])
                _copy_first(picks[before], wider_picks[before], sizes[before])
            choices, picks, widest = wider, wider_picks, sizes[s]
        _copy_first(points, choices[s], sizes[s])
        _copy_first(own, picks[s], sizes[s])
        servers += _max_servers(own)
    if servers <= chain.rule[MAX_TOTAL_SERVERS] and not count_servers:
        for s in range(stages):
            _drop_servers(choices, picks, sizes, s)
    return choices, picks, sizes


@kernel
def _drop_servers(choices: FloatArray, picks: IntArray, sizes: IntArray, s: int) -> None:
    """Keep the choices of a stage that are undominated when servers do not count."""
    for i in range(sizes[s]):
        choices[s, i, USED] = 0.0
    keep = frontier(choices[s], sizes[s], 0.0)
    points, own = np.empty((keep.shape[0], 4)), np.empty((keep.shape[0], 3), dtype=np.int64)
    copy_rows(choices[s], points, keep)
    copy_rows(picks[s], own, keep)
    _copy_first(points, choices[s], keep.shape[0])
    _copy_first(own, picks[s], keep.shape[0])
    sizes[s] = keep.shape[0]


@kernel
def separate_frontier(chain: Chain, within: float, count_servers: bool) -> tuple[FloatArray, IntArray]:
    """The chain's labels (cost, ms, servers or 0, 0) float64[m, 4] by cost, and (n, c, b) int64[m, S, 3] of each; see `all_labels`.

    `count_servers`, with `within` infinite: the whole frontier, over the servers too.
    """
    stages = chain.ints.shape[0]
    choices, picks, sizes = all_choices(chain, count_servers)
    if not _all_have_choices(sizes):
        return np.empty((0, 4)), np.empty((0, stages, 3), dtype=np.int64)
    limits = limits_of(np.inf, chain.rate[SLO], float(chain.rule[MAX_TOTAL_SERVERS]), np.inf, 0.0)
    labels, chosen = all_labels(choices, sizes, chain.ints, limits, within)
    plans = np.empty((labels.shape[0], stages, 3), dtype=np.int64)
    for i in range(labels.shape[0]):
        for s in range(stages):
            for d in range(3):
                plans[i, s, d] = picks[s, chosen[i, s], d]
    return labels, plans


@kernel
def fastest_separate(chain: Chain) -> float:
    """Least ms of the graph with the stages' servers fixed (MIN_SERVERS); infinite where a stage cannot carry its demand."""
    nodes_ms = np.empty(2 * chain.ints.shape[0] - 1)
    for s in range(chain.ints.shape[0]):
        n, best = chain.ints[s, MIN_SERVERS], np.inf
        for c in range(chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES] + 1):
            if c * chain.floats[s, MEMORY_BYTES] <= chain.rate[MEMORY_LIMIT]:
                full, busy = separate_columns(chain, s, n, c)
                best = min(best, best_batch(chain, s, full, busy, n, c)[1])
        nodes_ms[s] = best
    return graph_ms(chain.ints, nodes_ms)
