"""Kernels for servers whose counts differ: requests spread over them by capacity, each server with its own contention."""

from __future__ import annotations

import math

import numpy as np

from themis_triton.solver.jit import kernel
from themis_triton.solver.label_setting import COST_TOLERANCE, LATENCY_TOLERANCE_MS
from themis_triton.solver.queueing import MEMORY_LIMIT, RATE_GROWING, SLO
from themis_triton.solver.stage_kernels import (
    CAPACITY_TOLERANCE,
    CORES,
    ELSEWHERE,
    INSTANCE_PRICE,
    MEMORY_BYTES,
    RATIO,
    Busy,
    Chain,
    busy_columns,
    server_capacity_rps,
    set_rate,
    stage_times,
    wanted_rps,
)
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray

UNIFORM_TRIED = 4096  # vectors of equal counts that a search starts from; where there are more, only those in proportion


@kernel
def fleet_shares(chain: Chain, counts: IntArray, batches: IntArray, capacity: FloatArray) -> FloatArray:
    """Share of the chain's rate that each server gets as each stage's requests: by capacity, as a least-request balancer does.

    Writes all servers' requests/s of each stage; float64[n, S].
    """
    servers, stages = counts.shape
    shares = np.zeros((servers, stages))
    capacity[:] = 0.0
    for i in range(servers):
        total = counts[i].sum() + chain.rule[ELSEWHERE]
        for s in range(stages):
            if counts[i, s] > 0:
                full = counts[i, s] if chain.rule[CORES] else total
                shares[i, s] = server_capacity_rps(chain, s, counts[i, s], batches[i, s], full)
                capacity[s] += shares[i, s]
    for s in range(stages):
        if capacity[s] > 0.0:
            shares[:, s] *= chain.floats[s, RATIO] / capacity[s]
    return shares


@kernel
def fleet_times(chain: Chain, counts: IntArray, batches: IntArray, times: FloatArray, capacity: FloatArray) -> None:
    """Slowest server's ms and all servers' requests/s of each stage; `counts` and `batches` int64[n, S], count 0: not held."""
    servers, stages = counts.shape
    shares = fleet_shares(chain, counts, batches, capacity)
    times[:] = 0.0
    for i in range(servers):
        total = counts[i].sum()
        if total == 0:
            continue
        busy = busy_columns(chain, 0, stages, shares[i], total)
        for s in range(stages):
            c = counts[i, s]
            if c > 0:
                at = Busy(float(c), float(c), c) if chain.rule[CORES] else busy
                service, wait = stage_times(chain, s, at, (counts[:, s] > 0).sum(), shares[i, s], c, batches[i, s])
                times[s] = max(times[s], service + wait)
    for s in range(stages):
        if capacity[s] <= 0.0:
            times[s] = np.inf


@kernel
def fleet_ms(chain: Chain, counts: IntArray, batches: IntArray) -> float:
    """Predicted ms of the chain where it holds: inside SLO, capacity and every device's memory; infinite where not."""
    stages = counts.shape[1]
    times, capacity = np.empty(stages), np.empty(stages)
    for i in range(counts.shape[0]):
        if (counts[i] * chain.floats[:, MEMORY_BYTES]).sum() > chain.rate[MEMORY_LIMIT]:
            return np.inf
    fleet_times(chain, counts, batches, times, capacity)
    for s in range(stages):
        if capacity[s] < wanted_rps(chain, s) * (1.0 - CAPACITY_TOLERANCE):
            return np.inf
    ms = times.sum()
    return ms if ms <= chain.rate[SLO] + LATENCY_TOLERANCE_MS else np.inf


@kernel
def fleet_price(chain: Chain, counts: IntArray) -> float:
    """Price of all instances."""
    price = 0.0
    for i in range(counts.shape[0]):
        price += (counts[i] * chain.floats[:, INSTANCE_PRICE]).sum()
    return price


@kernel
def fleet_descend(chain: Chain, counts: IntArray, lows: IntArray, batches: IntArray) -> float:
    """Take instances away one by one, the dearest first and of equals the one that leaves the least ms, while the chain holds."""
    ms = fleet_ms(chain, counts, batches)
    while True:
        best_price, best_ms, best_i, best_s = -1.0, np.inf, -1, -1
        for i in range(counts.shape[0]):
            for s in range(counts.shape[1]):
                price = chain.floats[s, INSTANCE_PRICE]
                if counts[i, s] <= lows[i, s] or price < best_price:
                    continue
                counts[i, s] -= 1
                left = fleet_ms(chain, counts, batches)
                counts[i, s] += 1
                if left < np.inf and (price > best_price or left < best_ms):
                    best_price, best_ms, best_i, best_s = price, left, i, s
        if best_i < 0:
            return ms
        counts[best_i, best_s] -= 1
        ms = best_ms


@kernel
def _uniform(level: int, widest: IntArray, every: bool, lows: IntArray, highs: IntArray, counts: IntArray) -> None:
    rest = level
    for s in range(widest.shape[0]):
        if every:
            wanted = 1 + rest % widest[s]
            rest //= widest[s]
        else:
            wanted = max(1, math.ceil(widest[s] * (level + 1) / UNIFORM_TRIED))
        for i in range(counts.shape[0]):
            counts[i, s] = min(max(wanted, lows[i, s]), highs[i, s])


@kernel
def fleet_fit(chain: Chain, lows: IntArray, highs: IntArray, batches: IntArray, any_plan: bool, counts: IntArray) -> float:
    """Predicted ms of the cheapest fleet found, infinite where none is; writes its counts.

    Equal counts (inside each server's bounds) are tried in every combination; from the cheapest and from the fastest of them
    instances are then taken away one by one.
    """
    stages = lows.shape[1]
    widest, product = np.ones(stages, dtype=np.int64), 1.0
    for s in range(stages):
        widest[s] = max(1, highs[:, s].max())
        product *= widest[s]
    every = product <= UNIFORM_TRIED
    trial, fastest = np.empty_like(lows), np.empty_like(lows)
    price, quickest = np.inf, np.inf
    for level in range(int(product) if every else UNIFORM_TRIED):
        _uniform(level, widest, every, lows, highs, trial)
        ms = fleet_ms(chain, trial, batches)
        if ms < quickest:
            quickest = ms
            fastest[:] = trial
        if ms < np.inf and fleet_price(chain, trial) < price - COST_TOLERANCE:
            price = fleet_price(chain, trial)
            counts[:] = trial
            if any_plan:
                return ms
    if quickest == np.inf:
        return np.inf
    ms, other = fleet_descend(chain, counts, lows, batches), fleet_descend(chain, fastest, lows, batches)
    if fleet_price(chain, fastest) < fleet_price(chain, counts) - COST_TOLERANCE:
        counts[:] = fastest
        ms = other
    return ms


@kernel
def fleet_solve(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    lows: IntArray,
    highs: IntArray,
    batches: IntArray,
    counts: IntArray,
) -> tuple[bool, float]:
    """(feasible, the rate carried): the demand, or the largest whole rate found below it by bisection (−1: none). Writes the counts."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    demand = rate[RATE_GROWING]
    if fleet_fit(chain, lows, highs, batches, False, counts) < np.inf:
        return True, demand
    carried, above = -1, int(demand) + 1
    set_rate(chain, 0.0, 0.0)
    if fleet_fit(chain, lows, highs, batches, True, counts) < np.inf:
        carried = 0
        while above - carried > 1:
            middle = (above + carried) // 2
            set_rate(chain, float(middle), float(middle))
            if fleet_fit(chain, lows, highs, batches, True, counts) < np.inf:
                carried = middle
            else:
                above = middle
        set_rate(chain, float(carried), float(carried))
        fleet_fit(chain, lows, highs, batches, False, counts)
    return False, float(carried)


@kernel
def fleet_judge(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    counts: IntArray,
    batches: IntArray,
) -> FloatArray:
    """Each stage's (slowest ms, capacity requests/s, capacity wanted): float64[S, 3]."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    out = np.empty((ints.shape[0], 3))
    times, capacity = np.empty(ints.shape[0]), np.empty(ints.shape[0])
    fleet_times(chain, counts, batches, times, capacity)
    for s in range(ints.shape[0]):
        out[s, 0], out[s, 1], out[s, 2] = times[s], capacity[s], wanted_rps(chain, s)
    return out
