"""Kernels for servers that hold all stages of a chain: one number of servers, instances and a batch size per stage, one shared device."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, inlined, kernel
from themis_triton.solver.dominance import COST, LATENCY
from themis_triton.solver.join_kernels import JOIN_LEFT, JOIN_PARALLEL, JOIN_RIGHT, graph_ms, joined_ms
from themis_triton.solver.label_bounds import limits_of
from themis_triton.solver.label_setting import COST_TOLERANCE, LATENCY_TOLERANCE_MS, all_labels, cheapest
from themis_triton.solver.queueing import MEMORY_LIMIT, SLO
from themis_triton.solver.stage_kernels import (
    CORES,
    ELSEWHERE,
    INSTANCE_PRICE,
    MAX_INSTANCES,
    MEMORY_BYTES,
    MIN_INSTANCES,
    SERVER_PRICE,
    Busy,
    Chain,
    best_batch,
    busy_columns,
    required_rps,
    server_capacity_rps,
    servers_for,
    set_arrivals,
)
from themis_triton.solver.surface import FloatArray, IntArray


@flat_kernel
def count_of(chain: Chain, column: int) -> int:
    """The sum of a column of `Chain.ints` over the stages."""
    total = 0
    for s in range(chain.ints.shape[0]):
        total += chain.ints[s, column]
    return total


@flat_kernel
def min_price(chain: Chain) -> float:
    """Price of one server with the fewest instances."""
    price: float = chain.floats[0, SERVER_PRICE]
    for s in range(chain.ints.shape[0]):
        price += chain.floats[s, INSTANCE_PRICE] * chain.ints[s, MIN_INSTANCES]
    return price


@kernel
def device_columns(chain: Chain, servers: int, total: int) -> Busy:
    """The surface's columns for the times on one of `servers` equal servers with `total` instances."""
    stages = chain.ints.shape[0]
    arrivals = np.empty((2, stages))
    for s in range(stages):
        set_arrivals(chain, s, 1.0 / servers, arrivals, s)
    return busy_columns(chain, chain.latency[:stages], arrivals, total)


@kernel
def fill_tables(chain: Chain, servers: int, total: int, times: FloatArray, batches: IntArray) -> bool:
    """Write the fastest time of each stage with each count, beside `total` busy instances of all; False when even those miss the SLO.

    Whatever grows with the busy instances: the times are a bound of those with any larger total.
    """
    elsewhere, stages = chain.rule[ELSEWHERE], chain.ints.shape[0]
    nodes_ms = np.zeros(2 * stages - 1)
    busy = device_columns(chain, servers, total)
    for s in range(stages):
        least = np.inf
        for c in range(chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES] + 1):
            cores = chain.rule[CORES] > 0
            column, own = c if cores else total + elsewhere, Busy(float(c), float(c), c, c) if cores else busy
            batches[s, c], times[s, c] = best_batch(chain, s, column, own, servers, c)
            least = min(least, times[s, c])
        nodes_ms[s] = least
        if graph_ms(chain.ints, nodes_ms) > chain.rate[SLO] + LATENCY_TOLERANCE_MS:
            return False
    return True


@flat_kernel
def one_price(chain: Chain) -> bool:
    """Whether the instances of all stages have the same price and memory, so that their total determines both."""
    for s in range(1, chain.ints.shape[0]):
        for column in (INSTANCE_PRICE, MEMORY_BYTES):
            if chain.floats[s, column] != chain.floats[0, column]:
                return False
    return True


@flat_kernel
def _join_totals(left: FloatArray, right: FloatArray, parallel: int, best: FloatArray, take: IntArray) -> None:
    """Write the least latency of two parts by their total instances, and how many of these the right one takes."""
    for c in range(best.shape[0]):
        if right[c] == np.inf:
            continue
        for used in range(best.shape[0] - c):
            ms = joined_ms(left[used], right[c], parallel)
            if ms < best[used + c]:
                best[used + c], take[used + c] = ms, c


@kernel
def split_totals(chain: Chain, times: FloatArray, best: FloatArray, take: IntArray) -> None:
    """Write the least latency of each node of the graph (see `join_kernels`) by its total of instances, float64[2·S − 1, totals].

    `take`: of a join's instances, those of its right part. A plain DP, because the total determines the cost.
    """
    ints, stages = chain.ints, chain.ints.shape[0]
    best[:] = np.inf
    for s in range(stages):
        for c in range(ints[s, MIN_INSTANCES], ints[s, MAX_INSTANCES] + 1):
            best[s, c] = times[s, c]
    for k in range(stages - 1):
        _join_totals(best[ints[k, JOIN_LEFT]], best[ints[k, JOIN_RIGHT]], ints[k, JOIN_PARALLEL], best[stages + k], take[stages + k])


@kernel
def shares_of(chain: Chain, take: IntArray, total: int, counts: IntArray) -> None:
    """Write the stages' counts in the split of `total` instances."""
    ints, stages = chain.ints, chain.ints.shape[0]
    shares = np.zeros(2 * stages - 1, dtype=np.int64)
    shares[2 * stages - 2] = total
    for k in range(stages - 2, -1, -1):
        shares[ints[k, JOIN_RIGHT]] = take[stages + k, shares[stages + k]]
        shares[ints[k, JOIN_LEFT]] = shares[stages + k] - shares[ints[k, JOIN_RIGHT]]
    for s in range(stages):
        counts[s] = shares[s]


@kernel
def split_labels(chain: Chain, times: FloatArray, total: int, cost_limit: float, counts: IntArray) -> tuple[float, float]:
    """(price of the instances of one server, ms) with exactly `total` instances, where prices or memory differ by stage."""
    stages = chain.ints.shape[0]
    choices = np.empty((stages, times.shape[1], 4))
    sizes = np.zeros(stages, dtype=np.int64)
    spare, lacking = total - count_of(chain, MIN_INSTANCES), count_of(chain, MAX_INSTANCES) - total
    for s in range(stages):
        low, high = chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES]
        for c in range(max(low, high - lacking), min(high, low + spare) + 1):
            if times[s, c] < np.inf:
                i = sizes[s]
                choices[s, i, 0], choices[s, i, 1] = c * chain.floats[s, INSTANCE_PRICE], times[s, c]
                choices[s, i, 2], choices[s, i, 3] = float(c), c * chain.floats[s, MEMORY_BYTES]
                sizes[s] += 1
    limits = limits_of(cost_limit, chain.rate[SLO], float(total), chain.rate[MEMORY_LIMIT], 1.0)
    labels, chosen = all_labels(choices, sizes, chain.ints, limits, np.inf)
    best = cheapest(labels, 1.0, float(total))
    if best < 0:
        return np.inf, np.inf
    for s in range(stages):
        counts[s] = int(choices[s, chosen[best, s], 2])
    return labels[best, COST], labels[best, LATENCY]


@kernel
def best_for_servers(  # noqa: C901 - called functions would be compiled into it once more
    chain: Chain, servers: int, cost_limit: float, counts: IntArray, batches: IntArray
) -> tuple[float, float]:
    """(cost, ms) of the cheapest plan on `servers` servers, infinite when none is below the limit; writes counts and batches."""
    stages, base, simple = chain.ints.shape[0], chain.floats[0, SERVER_PRICE], one_price(chain)
    low, high, widest, least_price = count_of(chain, MIN_INSTANCES), count_of(chain, MAX_INSTANCES), 0, np.inf
    slo_ms = chain.rate[SLO] + LATENCY_TOLERANCE_MS
    for s in range(stages):
        widest, least_price = max(widest, chain.ints[s, MAX_INSTANCES]), min(least_price, chain.floats[s, INSTANCE_PRICE])
    floor = min_price(chain)
    times, fastest = np.empty((stages, widest + 1)), np.zeros((stages, widest + 1), dtype=np.int64)
    splits, take = np.empty((2 * stages - 1, high + 1)), np.zeros((2 * stages - 1, high + 1), dtype=np.int64)
    trial = np.zeros(stages, dtype=np.int64)
    best_cost, best_ms, total = np.inf, np.inf, low
    while total <= high:
        limit, asked = min(cost_limit, best_cost), total
        if servers * (floor + (total - low) * least_price) > limit + COST_TOLERANCE:
            break
        if simple and total * chain.floats[0, MEMORY_BYTES] > chain.rate[MEMORY_LIMIT]:
            break
        if not fill_tables(chain, servers, total, times, fastest):
            break
        # The tables are a bound for larger totals: those that are too slow by them, or no faster than the best at its price, are left out.
        split_totals(chain, times, splits, take)
        fastest_ms = splits[2 * stages - 2]
        while total <= high and (fastest_ms[total] > slo_ms or (simple and fastest_ms[total] >= best_ms)):
            total += 1
        if total > asked:
            continue
        total += 1
        price, ms = asked * least_price, fastest_ms[asked]
        if simple:
            shares_of(chain, take, asked, trial)
        else:
            price, ms = split_labels(chain, times, asked, limit / servers - base + COST_TOLERANCE, trial)
        if not ms <= slo_ms:
            continue
        cost = servers * (base + price)
        if cost < best_cost - COST_TOLERANCE or (cost <= best_cost + COST_TOLERANCE and ms < best_ms):
            best_cost, best_ms = cost, ms
            for s in range(stages):
                counts[s], batches[s] = trial[s], fastest[s, trial[s]]
    return best_cost, best_ms


@kernel
def total_that_fits(chain: Chain, servers: int, likely: int) -> int:
    """A total of instances with which `servers` servers carry the rate: `likely`, or else the least one; 0 when there is none."""
    stages, simple = chain.ints.shape[0], one_price(chain)
    low, high, widest = count_of(chain, MIN_INSTANCES), count_of(chain, MAX_INSTANCES), 0
    slo_ms = chain.rate[SLO] + LATENCY_TOLERANCE_MS
    for s in range(stages):
        widest = max(widest, chain.ints[s, MAX_INSTANCES])
    times, fastest = np.empty((stages, widest + 1)), np.zeros((stages, widest + 1), dtype=np.int64)
    splits, take = np.empty((2 * stages - 1, high + 1)), np.zeros((2 * stages - 1, high + 1), dtype=np.int64)
    trial, missed = np.zeros(stages, dtype=np.int64), np.zeros(high + 1, dtype=np.bool_)
    end = high  # the largest total that may fit
    while simple and end >= low and end * chain.floats[0, MEMORY_BYTES] > chain.rate[MEMORY_LIMIT]:
        end -= 1
    total = likely if low < likely <= end else low
    while total <= end:
        if not fill_tables(chain, servers, total, times, fastest):
            end = total - 1  # the tables are a bound for larger totals
        else:
            split_totals(chain, times, splits, take)
            ms = splits[2 * stages - 2, total]
            if ms <= slo_ms and not simple:
                ms = split_labels(chain, times, total, np.inf, trial)[1]
            if ms <= slo_ms:
                return total
            missed[total] = True
            for larger in range(total + 1, end + 1):
                missed[larger] |= splits[2 * stages - 2, larger] > slo_ms
        total = low
        while total <= end and missed[total]:
            total += 1
    return 0


@flat_kernel
def largest_capacities(chain: Chain, largest: FloatArray) -> None:
    """Write the largest capacity of one server for each stage: a bound, because other stages count with their fewest instances."""
    low = count_of(chain, MIN_INSTANCES)
    for s in range(chain.ints.shape[0]):
        largest[s] = 0.0
        for c in range(chain.ints[s, MIN_INSTANCES], chain.ints[s, MAX_INSTANCES] + 1):
            full = c if chain.rule[CORES] else low - chain.ints[s, MIN_INSTANCES] + c + chain.rule[ELSEWHERE]
            for batch in range(1, chain.allowed.shape[1] + 1):
                if chain.allowed[s, batch - 1]:
                    largest[s] = max(largest[s], server_capacity_rps(chain, s, c, batch, full))


@flat_kernel
def servers_for_all(chain: Chain, largest: FloatArray) -> int:
    """A lower bound on the servers: each stage's demand over the largest capacity of one server; 0: no number is enough."""
    bound = 1
    for s in range(chain.ints.shape[0]):
        needed = servers_for(required_rps(chain, s), largest[s])
        if needed == 0:
            return 0
        bound = max(bound, needed)
    return bound


@kernel
def min_servers(chain: Chain) -> int:
    """The bound of `servers_for_all`."""
    largest = np.empty(chain.ints.shape[0])
    largest_capacities(chain, largest)
    return servers_for_all(chain, largest)


@inlined
def cheapest_colocated(chain: Chain, low: int, high: int, counts: IntArray, batches: IntArray, best: FloatArray) -> None:
    """Over low..high servers: writes [n, cost, ms, runner-up's n, cost, ms], n 0 where there is none; the winner's counts and batches."""
    stages = chain.ints.shape[0]
    floor, first = min_price(chain), min_servers(chain)
    trial, trial_batches = np.zeros(stages, dtype=np.int64), np.zeros(stages, dtype=np.int64)
    best[0], best[1], best[2], best[3], best[4], best[5] = 0.0, np.inf, np.inf, 0.0, np.inf, np.inf
    for n in range(max(low, first), high + 1 if first > 0 else 0):
        if n * floor > best[4] + COST_TOLERANCE:
            break
        cost, ms = best_for_servers(chain, n, best[4], trial, trial_batches)
        if cost == np.inf:
            continue
        if cost < best[1] - COST_TOLERANCE or (cost <= best[1] + COST_TOLERANCE and ms < best[2]):
            best[3], best[4], best[5] = best[0], best[1], best[2]
            best[0], best[1], best[2] = n, cost, ms
            for s in range(stages):
                counts[s], batches[s] = trial[s], trial_batches[s]
        elif cost < best[4] - COST_TOLERANCE or (cost <= best[4] + COST_TOLERANCE and ms < best[5]):
            best[3], best[4], best[5] = n, cost, ms
