"""Kernels for servers that hold all stages of a chain: one n for all, c and b a stage, everybody on one device."""

from __future__ import annotations

import numpy as np

from themis_triton.solver.jit import kernel
from themis_triton.solver.label_setting import COST, COST_TOLERANCE, LATENCY, LATENCY_TOLERANCE_MS, all_labels, cheapest, limits_of
from themis_triton.solver.queueing import MEMORY_LIMIT, SLO
from themis_triton.solver.stage_kernels import (
    CORES,
    ELSEWHERE,
    INSTANCE_PRICE,
    MAX_INSTANCES,
    MEMORY_BYTES,
    MIN_INSTANCES,
    RATIO,
    SERVER_PRICE,
    Busy,
    Chain,
    best_batch,
    busy_columns,
    server_capacity_rps,
    servers_for,
    wanted_rps,
)
from themis_triton.solver.surface import FloatArray, IntArray


@kernel
def fill_tables(chain: Chain, servers: int, total: int, times: FloatArray, batches: IntArray) -> bool:
    """Fastest time of each stage with each count; False when the fastest together miss the SLO.

    Counts that leave the other stages less than their least, or more than their most, of `total` get no time.
    """
    elsewhere, stages, fastest = chain.rule[ELSEWHERE], chain.ints.shape[0], 0.0
    spare, lacking = total - chain.ints[:, MIN_INSTANCES].sum(), chain.ints[:, MAX_INSTANCES].sum() - total
    busy = busy_columns(chain, 0, stages, chain.floats[:, RATIO] / servers, total)
    for s in range(stages):
        low, high, least = chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES], np.inf
        for c in range(low, high + 1):
            if c - low > spare or high - c > lacking:
                batches[s, c], times[s, c] = 0, np.inf
            elif chain.rule[CORES]:
                batches[s, c], times[s, c] = best_batch(chain, s, c, Busy(float(c), float(c), c), servers, c)
            else:
                batches[s, c], times[s, c] = best_batch(chain, s, total + elsewhere, busy, servers, c)
            least = min(least, times[s, c])
        fastest += least
        if fastest > chain.rate[SLO] + LATENCY_TOLERANCE_MS:
            return False
    return True


@kernel
def one_price(chain: Chain) -> bool:
    """Whether all stages' instances cost the same and take the same memory, so that their total says it all."""
    for s in range(1, chain.ints.shape[0]):
        for column in (INSTANCE_PRICE, MEMORY_BYTES):
            if chain.floats[s, column] != chain.floats[0, column]:
                return False
    return True


@kernel
def split_total(chain: Chain, times: FloatArray, total: int, counts: IntArray) -> float:
    """Least total time with exactly `total` instances; writes the counts. A plain DP: the total settles the cost."""
    stages = chain.ints.shape[0]
    best = np.full((stages + 1, total + 1), np.inf)
    take = np.zeros((stages, total + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for s in range(stages):
        for c in range(chain.ints[s, MIN_INSTANCES], min(chain.ints[s, MAX_INSTANCES], total) + 1):
            if times[s, c] == np.inf:
                continue
            for used in range(total - c + 1):
                if best[s, used] + times[s, c] < best[s + 1, used + c]:
                    best[s + 1, used + c] = best[s, used] + times[s, c]
                    take[s, used + c] = c
    left = total
    if best[stages, total] < np.inf:
        for s in range(stages - 1, -1, -1):
            counts[s] = take[s, left]
            left -= take[s, left]
    ms: float = best[stages, total]
    return ms


@kernel
def split_labels(chain: Chain, times: FloatArray, total: int, cost_limit: float, counts: IntArray) -> tuple[float, float]:
    """(price of the instances of one server, ms) with exactly `total` instances, where prices or memory differ by stage."""
    stages = chain.ints.shape[0]
    choices = np.empty((stages, times.shape[1], 4))
    sizes = np.zeros(stages, dtype=np.int64)
    for s in range(stages):
        for c in range(chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES] + 1):
            if times[s, c] < np.inf:
                i = sizes[s]
                choices[s, i, 0], choices[s, i, 1] = c * chain.floats[s, INSTANCE_PRICE], times[s, c]
                choices[s, i, 2], choices[s, i, 3] = float(c), c * chain.floats[s, MEMORY_BYTES]
                sizes[s] += 1
    limits = limits_of(cost_limit, chain.rate[SLO], float(total), chain.rate[MEMORY_LIMIT])
    labels, chosen = all_labels(choices, sizes, limits, True, np.inf)
    best = cheapest(labels, True, float(total))
    if best < 0:
        return np.inf, np.inf
    for s in range(stages):
        counts[s] = int(choices[s, chosen[best, s], 2])
    return labels[best, COST], labels[best, LATENCY]


@kernel
def best_for_servers(
    chain: Chain, servers: int, cost_limit: float, any_plan: bool, counts: IntArray, batches: IntArray
) -> tuple[float, float]:
    """(cost, ms) of the cheapest plan on `servers` servers, infinite when none is below the limit; writes counts and batches."""
    stages, prices = chain.ints.shape[0], chain.floats[:, INSTANCE_PRICE]
    low, high, widest = chain.ints[:, MIN_INSTANCES].sum(), chain.ints[:, MAX_INSTANCES].sum(), chain.ints[:, MAX_INSTANCES].max()
    base, least_price, simple = chain.floats[0, SERVER_PRICE], prices.min(), one_price(chain)
    floor = base + (prices * chain.ints[:, MIN_INSTANCES]).sum()
    times, fastest = np.empty((stages, widest + 1)), np.zeros((stages, widest + 1), dtype=np.int64)
    trial = np.zeros(stages, dtype=np.int64)
    best_cost, best_ms = np.inf, np.inf
    for total in range(low, high + 1):
        limit = min(cost_limit, best_cost)
        if servers * (floor + (total - low) * least_price) > limit + COST_TOLERANCE:
            break
        if simple and total * chain.floats[0, MEMORY_BYTES] > chain.rate[MEMORY_LIMIT]:
            break
        if not fill_tables(chain, servers, total, times, fastest):
            continue
        price = total * least_price
        if simple:
            ms = split_total(chain, times, total, trial)
        else:
            price, ms = split_labels(chain, times, total, limit / servers - base + COST_TOLERANCE, trial)
        if not ms <= chain.rate[SLO] + LATENCY_TOLERANCE_MS:
            continue
        cost = servers * (base + price)
        if cost < best_cost - COST_TOLERANCE or (cost <= best_cost + COST_TOLERANCE and ms < best_ms):
            best_cost, best_ms = cost, ms
            for s in range(stages):
                counts[s], batches[s] = trial[s], fastest[s, trial[s]]
            if any_plan:
                break
    return best_cost, best_ms


@kernel
def min_servers(chain: Chain) -> int:
    """A lower bound on the servers: each stage's demand over the most that one server could carry; 0: no number is enough."""
    low = chain.ints[:, MIN_INSTANCES].sum()
    bound = 1
    for s in range(chain.ints.shape[0]):
        most = 0.0
        for c in range(chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES] + 1):
            full = c if chain.rule[CORES] else low - chain.ints[s, MIN_INSTANCES] + c + chain.rule[ELSEWHERE]
            for batch in range(1, chain.allowed.shape[1] + 1):
                if chain.allowed[s, batch - 1]:
                    most = max(most, server_capacity_rps(chain, s, c, batch, full))
        needed = servers_for(wanted_rps(chain, s), most)
        if needed == 0:
            return 0
        bound = max(bound, needed)
    return bound


@kernel
def cheapest_colocated(chain: Chain, low: int, high: int, counts: IntArray, batches: IntArray) -> FloatArray:
    """Over low..high servers: [n, cost, ms, runner-up's n, cost, ms]; n 0 where there is none. Writes the winner's counts and batches."""
    best = np.array([0.0, np.inf, np.inf, 0.0, np.inf, np.inf])
    stages = chain.ints.shape[0]
    floor = chain.floats[0, SERVER_PRICE] + (chain.floats[:, INSTANCE_PRICE] * chain.ints[:, MIN_INSTANCES]).sum()
    trial, trial_batches = np.zeros(stages, dtype=np.int64), np.zeros(stages, dtype=np.int64)
    first = min_servers(chain)
    if first == 0:
        return best
    for n in range(max(low, first), high + 1):
        if n * floor > best[4] + COST_TOLERANCE:
            break
        cost, ms = best_for_servers(chain, n, best[4], False, trial, trial_batches)
        if cost == np.inf:
            continue
        if cost < best[1] - COST_TOLERANCE or (cost <= best[1] + COST_TOLERANCE and ms < best[2]):
            best[3], best[4], best[5] = best[0], best[1], best[2]
            best[0], best[1], best[2] = n, cost, ms
            counts[:], batches[:] = trial, trial_batches
        elif cost < best[4] - COST_TOLERANCE or (cost <= best[4] + COST_TOLERANCE and ms < best[5]):
            best[3], best[4], best[5] = n, cost, ms
    return best
