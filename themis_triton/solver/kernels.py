"""The compiled entries: arrays in, arrays out. Everything else in the kernels is reached from here."""

from __future__ import annotations

import numpy as np

from themis_triton.solver.colocated import best_for_servers, cheapest_colocated, min_servers
from themis_triton.solver.jit import kernel
from themis_triton.solver.label_setting import COST, LATENCY_TOLERANCE_MS, cheapest
from themis_triton.solver.queueing import SLO
from themis_triton.solver.separate import fastest_separate, separate_columns, separate_fits, separate_frontier
from themis_triton.solver.stage_kernels import (
    CORES,
    ELSEWHERE,
    INSTANCE_PRICE,
    MIN_INSTANCES,
    RATIO,
    SERVER_PRICE,
    Chain,
    busy_columns,
    server_capacity_rps,
    set_rate,
    stage_times,
)
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray

# Columns of a plan's rows; the last row is (found, cost, ms, runner-up's servers, cost, ms).
TOGETHER, BY_STAGE, IN_TOTAL = 0, 1, 2
NEAR = 1.05  # plans this much dearer than a good one are still looked at, for the runner-up
N, C, B, SERVICE, WAIT, CAPACITY = 0, 1, 2, 3, 4, 5


@kernel
def describe_stage(chain: Chain, s: int, colocated: bool, servers: int, instances: int, batch: int, total: int, row: FloatArray) -> None:
    """Write one stage's row of a plan."""
    if colocated and not chain.rule[CORES]:
        full = total + chain.rule[ELSEWHERE]
        busy = busy_columns(chain, 0, chain.ints.shape[0], chain.floats[:, RATIO] / servers, total)
    else:
        full, busy = separate_columns(chain, s, servers, instances)
    service, wait = stage_times(chain, s, busy, servers, chain.floats[s, RATIO] / servers, instances, batch)
    row[N], row[C], row[B], row[SERVICE], row[WAIT] = servers, instances, batch, service, wait
    row[CAPACITY] = servers * server_capacity_rps(chain, s, instances, batch, full)


@kernel
def joint_colocated(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    low: int,
    high: int,
) -> FloatArray:
    """The cheapest plan over low..high servers: float64[S + 1, 6]."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    stages = ints.shape[0]
    out = np.zeros((stages + 1, 6))
    counts, batches = np.zeros(stages, dtype=np.int64), np.zeros(stages, dtype=np.int64)
    best = cheapest_colocated(chain, low, high, counts, batches)
    out[stages, 0] = 1.0 if best[0] > 0 else 0.0
    out[stages, 1:] = best[1:]
    if best[0] > 0:
        for s in range(stages):
            describe_stage(chain, s, True, int(best[0]), counts[s], batches[s], counts.sum(), out[s])
    return out


@kernel
def joint_separate(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
) -> FloatArray:
    """The cheapest plan with n, c and b a stage: float64[S + 1, 6]."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    stages = ints.shape[0]
    out = np.zeros((stages + 1, 6))
    labels, plans = separate_frontier(chain, NEAR)
    best = cheapest(labels, False, 0.0)
    if best < 0:
        return out
    for s in range(stages):
        describe_stage(chain, s, False, plans[best, s, 0], plans[best, s, 1], plans[best, s, 2], 0, out[s])
    out[stages, 0], out[stages, 1], out[stages, 2] = 1.0, labels[best, 0], labels[best, 1]
    for i in range(labels.shape[0]):
        if labels[i, 1] < labels[best, 1]:
            out[stages, 3], out[stages, 4], out[stages, 5] = plans[i, :, 0].sum(), labels[i, 0], labels[i, 1]
            break
    return out


@kernel
def judge(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    colocated: bool,
    servers: IntArray,
    instances: IntArray,
    batches: IntArray,
) -> FloatArray:
    """A given configuration described: float64[S, 6]."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    out = np.zeros((ints.shape[0], 6))
    for s in range(ints.shape[0]):
        describe_stage(chain, s, colocated, servers[s], instances[s], batches[s], instances.sum(), out[s])
    return out


@kernel
def _holds(chain: Chain, holding: int, servers: int, counts: IntArray, batches: IntArray) -> bool:
    if holding == TOGETHER:
        _, ms = best_for_servers(chain, servers, np.inf, True, counts, batches)
        return bool(ms < np.inf)
    if holding == IN_TOTAL:
        return separate_fits(chain)
    return bool(fastest_separate(chain) <= chain.rate[SLO] + LATENCY_TOLERANCE_MS)


@kernel
def largest_rate(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    holding: int,
    servers: int,
    most: int,
) -> int:
    """The largest whole rate up to `most` that the given servers carry inside the SLO; −1 when not even rate 0 is.

    `holding` TOGETHER: `servers` hold all stages; BY_STAGE: MIN_SERVERS of each stage; IN_TOTAL: at most MOST_SERVERS, freely divided.

    Waits that fall with the rate make this not monotone: intervals are ruled out whole, upper halves first.
    """
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    counts, batches = np.zeros(ints.shape[0], dtype=np.int64), np.zeros(ints.shape[0], dtype=np.int64)
    lows, highs, depth = np.zeros(128, dtype=np.int64), np.zeros(128, dtype=np.int64), 1
    lows[0], highs[0] = 1, most  # rate 0 stands apart: nobody gathers a batch there
    while depth > 0:
        depth -= 1
        low, high = lows[depth], highs[depth]
        set_rate(chain, float(low), float(high))
        if high < low or not _holds(chain, holding, servers, counts, batches):
            continue
        set_rate(chain, float(high), float(high))
        if _holds(chain, holding, servers, counts, batches):
            return int(high)
        if low == high:
            continue
        middle = (low + high - 1) // 2
        lows[depth], highs[depth] = low, middle
        depth += 1
        if middle + 1 <= high - 1:
            lows[depth], highs[depth] = middle + 1, high - 1
            depth += 1
    set_rate(chain, 0.0, 0.0)
    return 0 if _holds(chain, holding, servers, counts, batches) else -1


@kernel
def enough_servers(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    held: int,
    most_more: int,
) -> int:
    """The fewest servers above `held`, which do not suffice, that hold all stages and carry the rate; 0: not even `most_more` more do.

    Every server helps, so that doubling and halving find them.
    """
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    counts, batches = np.zeros(ints.shape[0], dtype=np.int64), np.zeros(ints.shape[0], dtype=np.int64)
    low, high = 0, 1
    while not _holds(chain, TOGETHER, held + high, counts, batches):
        low, high = high, 2 * high
        if high > most_more:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(chain, TOGETHER, held + middle, counts, batches):
            high = middle
        else:
            low = middle
    return held + high


@kernel
def first_servers(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    low: int,
    high: int,
) -> int:
    """The fewest of low..high servers that hold all stages and carry the rate; 0: none of them."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    counts, batches = np.zeros(ints.shape[0], dtype=np.int64), np.zeros(ints.shape[0], dtype=np.int64)
    first = min_servers(chain)
    if first > 0:
        for n in range(max(low, first), high + 1):
            if _holds(chain, TOGETHER, n, counts, batches):
                return n
    return 0


@kernel
def costs_by_servers(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    colocated: bool,
    most: int,
) -> FloatArray:
    """float64[most + 1]: the least cost with at most that many servers, infinite where no plan holds."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    costs = np.full(most + 1, np.inf)
    if colocated:
        counts, batches = np.zeros(ints.shape[0], dtype=np.int64), np.zeros(ints.shape[0], dtype=np.int64)
        floor = floats[0, SERVER_PRICE] + (floats[:, INSTANCE_PRICE] * ints[:, MIN_INSTANCES]).sum()
        first = min_servers(chain)
        for n in range(1, most + 1):
            costs[n] = costs[n - 1]
            if first > 0 and n >= first and n * floor <= costs[n]:
                costs[n] = min(costs[n], best_for_servers(chain, n, costs[n], False, counts, batches)[0])
        return costs
    labels, plans = separate_frontier(chain, np.inf)
    for i in range(labels.shape[0]):
        used = plans[i, :, 0].sum()
        costs[used] = min(costs[used], labels[i, COST])
    for n in range(1, most + 1):
        costs[n] = min(costs[n], costs[n - 1])
    return costs
