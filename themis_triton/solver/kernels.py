"""The solver's compiled entries: arrays in, arrays out. Everything else in the kernels is called from here.

There is one search per placement: Numba compiles everything that an entry calls into it again, so that few entries compile fast.
"""

from __future__ import annotations

import numpy as np
from numba import types

from themis_triton.jit import BOOLS_2D, FLOATS, FLOATS_2D, FLOATS_3D, INTEGER, INTS, INTS_2D, Entry, Group, inlined, kernel
from themis_triton.solver.colocated import (
    best_for_servers,
    cheapest_colocated,
    device_columns,
    largest_capacities,
    min_price,
    min_servers,
    servers_for_all,
    total_that_fits,
)
from themis_triton.solver.dominance import COST
from themis_triton.solver.fleet_kernels import describe_fleet
from themis_triton.solver.label_setting import LATENCY_TOLERANCE_MS, cheapest
from themis_triton.solver.queueing import RATE_GROWING, SLO
from themis_triton.solver.rate_search import NO_GUESS, largest_rate, largest_slower_rate
from themis_triton.solver.separate import fastest_separate, separate_columns, separate_frontier
from themis_triton.solver.slot_kernels import split_slots
from themis_triton.solver.stage_kernels import CORES, ELSEWHERE, SLOWER, Chain, place_times, server_capacity_rps, set_rate
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray

# The answer of a search. CHEAPEST: a plan of low..high servers; FEWEST: the fewest of low..high servers that carry the rate; ENOUGH: the
# fewest above `low`, which do not suffice, up to about low + high; LARGEST_RATE: the largest whole rate up to `high` on `low` servers
# (MIN_SERVERS of each stage where stages are separate); LARGEST_RATE_IN_TOTAL: on MAX_TOTAL_SERVERS, freely divided; COSTS: the least
# cost with at most 0..high servers; LARGEST_RATES: the largest rates on low..high servers, the first of them about the chain's own.
CHEAPEST, FEWEST, ENOUGH, LARGEST_RATE, LARGEST_RATE_IN_TOTAL, COSTS, LARGEST_RATES = 0, 1, 2, 3, 4, 5, 6
RATE_LIMIT = 10**9
NEAR = 1.05  # plans up to this much dearer than a good one are compared too, for the runner-up
N, C, B, SERVICE, WAIT, CAPACITY = 0, 1, 2, 3, 4, 5  # columns of a stage's row; the last row: see `search_colocated`


@kernel
def describe_stage(chain: Chain, s: int, colocated: bool, servers: int, instances: int, batch: int, total: int, row: FloatArray) -> None:
    """Write one stage's row of a plan; `total` instances share the device where stages are co-located."""
    if colocated and not chain.rule[CORES]:
        full, busy = total + chain.rule[ELSEWHERE], device_columns(chain, servers, total)
    else:
        full, busy = separate_columns(chain, s, servers, instances)
    service, wait = place_times(chain, s, busy, servers, instances, batch)
    row[N], row[C], row[B], row[SERVICE], row[WAIT] = servers, instances, batch, service, wait
    row[CAPACITY] = servers * server_capacity_rps(chain, s, instances, batch, full)


@kernel
def describe_plan(
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
    """The rows of a given configuration: float64[S, 6]."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    out, total = np.zeros((ints.shape[0], 6)), int(np.int64(0))
    for s in range(ints.shape[0]):
        total += instances[s]
    for s in range(ints.shape[0]):
        describe_stage(chain, s, colocated, servers[s], instances[s], batches[s], total, out[s])
    return out


@kernel
def _fits_together(chain: Chain, servers: int, flag: bool, memo: IntArray) -> bool:  # noqa: ARG001 - as `_fits_apart`
    """Whether `servers` servers that hold all stages carry the rate. `memo[0]`: the instances with which servers did so last."""
    total = total_that_fits(chain, servers, memo[0])
    memo[0] = total if total > 0 else memo[0]
    return bool(total > 0)


@inlined
def _cheapest_plan(chain: Chain, low: int, high: int, colocated: bool, out: FloatArray) -> None:
    """Write the rows of the cheapest co-located plan."""
    stages, total, best = chain.ints.shape[0], int(np.int64(0)), np.empty(6)
    counts, batches = np.zeros(stages, dtype=np.int64), np.zeros(stages, dtype=np.int64)
    cheapest_colocated(chain, low, high, counts, batches, best)
    out[stages, 0] = 1.0 if best[0] > 0.0 else 0.0
    for d in range(1, 6):
        out[stages, d] = best[d]
    for s in range(stages):
        total += counts[s]
    for s in range(stages if best[0] > 0.0 else 0):
        describe_stage(chain, s, colocated, int(best[0]), counts[s], batches[s], total, out[s])


@kernel
def _rate_limit(chain: Chain, servers: int, max_rps: int, largest: FloatArray) -> int:
    """A whole rate up to `max_rps` beyond which a stage lacks capacity on so many servers, whatever its times: a bound in microseconds.

    `largest`: see `largest_capacities`.
    """
    low, high = 0, max_rps + 1
    while high - low > 1:
        middle = (low + high) // 2
        set_rate(chain, float(middle), float(middle))
        if 0 < servers_for_all(chain, largest) <= servers:
            low = middle
        else:
            high = middle
    return low


@inlined
def _enough_servers(chain: Chain, low: int, high: int, flag: bool, memo: IntArray) -> int:
    """The fewest servers above `low`; 0: not even about `high` more do. Every server helps, so that doubling and halving find them."""
    below, above = 0, 1
    while above <= high and not _fits_together(chain, low + above, flag, memo):
        below, above = above, 2 * above
    while above <= high and above - below > 1:
        middle = (below + above) // 2
        if _fits_together(chain, low + middle, flag, memo):
            above = middle
        else:
            below = middle
    return low + above if above <= high else 0


@inlined
def _fewest_servers(chain: Chain, low: int, high: int, flag: bool, memo: IntArray) -> int:
    """The fewest of low..high servers; 0: none of them."""
    first, fewest = min_servers(chain), 0
    n = max(low, first)
    while first > 0 and fewest == 0 and n <= high:
        if _fits_together(chain, n, flag, memo):
            fewest = n
        n += 1
    return fewest


@inlined
def _costs_together(chain: Chain, high: int, out: FloatArray) -> None:
    """Write the least cost with at most n servers into `out[n, 0]`."""
    floor, first = min_price(chain), min_servers(chain)
    counts, batches = np.zeros(chain.ints.shape[0], dtype=np.int64), np.zeros(chain.ints.shape[0], dtype=np.int64)
    out[0, 0] = np.inf
    for n in range(1, high + 1):
        cost = out[n - 1, 0]
        if first > 0 and n >= first and n * floor <= cost:
            cost = min(cost, best_for_servers(chain, n, cost, counts, batches)[0])
        out[n, 0] = cost


@inlined
def _largest_together(chain: Chain, low: int, high: int, max_rps: int, flag: bool, memo: IntArray, out: FloatArray) -> None:
    """Write the largest rate on low..high servers into `out[n - low, 0]`; of several, each search begins where the last ones lead to."""
    guess = int(chain.rate[RATE_GROWING]) if max_rps == RATE_LIMIT else NO_GUESS
    largest = np.empty(chain.ints.shape[0])
    largest_capacities(chain, largest)
    for n in range(low, high + 1):
        limit_rps = _rate_limit(chain, n, max_rps, largest)
        if chain.rule[SLOWER]:
            rate = largest_slower_rate(chain, _fits_together, n, flag, limit_rps, guess, memo)
        else:
            rate = largest_rate(chain, _fits_together, n, flag, limit_rps, memo)
        out[n - low, 0] = rate
        guess = max(0, 2 * rate - int(out[n - low - 1, 0]) if n > low else rate + rate // n)


@kernel
def search_colocated(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    question: int,
    low: int,
    high: int,
) -> FloatArray:
    """The answer about servers that hold all stages, float64[·, 6].

    CHEAPEST: a row per stage, and last (found, cost, ms, runner-up's servers, cost, ms). COSTS: at [n, 0], infinite where no plan holds.
    The other questions: a number at [0, 0]; 0 servers where no number is enough, a rate of −1 where not even rate 0 is carried.
    LARGEST_RATES: such a rate of n servers at [n - low, 0].
    """
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    several, memo = question in (COSTS, LARGEST_RATES), np.zeros(1, dtype=np.int64)
    out = np.zeros((high + 1 if several else ints.shape[0] + 1, 6))
    if question == CHEAPEST:
        _cheapest_plan(chain, low, high, not several, out)
    elif question == FEWEST:
        out[0, 0] = _fewest_servers(chain, low, high, several, memo)
    elif question == ENOUGH:
        out[0, 0] = _enough_servers(chain, low, high, several, memo)
    elif question == COSTS:
        _costs_together(chain, high, out)
    else:
        _largest_together(chain, low, high if several else low, RATE_LIMIT if several else high, several, memo, out)
    return out


@inlined
def _fits_apart(chain: Chain, servers: int, in_total: bool, memo: IntArray) -> bool:  # noqa: ARG001 - as `_fits_together`
    """Whether any plan holds with MAX_TOTAL_SERVERS servers in total, or else with MIN_SERVERS of each stage."""
    if in_total:
        fits = separate_frontier(chain, 1.0, not in_total)[0].shape[0] > 0
    else:
        fits = fastest_separate(chain) <= chain.rate[SLO] + LATENCY_TOLERANCE_MS
    return fits


@kernel
def _write_separate_plan(chain: Chain, labels: FloatArray, plans: IntArray, out: FloatArray, colocated: bool) -> None:
    """Write the rows of the cheapest label, and the runner-up: the next dearer label with a lower p99."""
    stages, best = plans.shape[1], cheapest(labels, 0.0, 0.0)
    if best < 0:
        return
    for s in range(stages):
        servers, instances, batch = plans[best, s, 0], plans[best, s, 1], plans[best, s, 2]
        describe_stage(chain, s, colocated, servers, instances, batch, instances, out[s])
    last = out[stages]
    last[0], last[1], last[2] = 1.0, labels[best, 0], labels[best, 1]
    for i in range(labels.shape[0]):
        if labels[i, 1] < labels[best, 1]:
            last[4], last[5] = labels[i, 0], labels[i, 1]
            for s in range(stages):
                last[3] += plans[i, s, 0]
            break


@kernel
def search_separate(
    latency: FloatArray,
    gather: FloatArray,
    ints: IntArray,
    floats: FloatArray,
    allowed: BoolArray,
    rate: FloatArray,
    rule: IntArray,
    question: int,
    low: int,
    high: int,
) -> FloatArray:
    """The answer about servers that hold one stage each: as `search_colocated`, for its questions but FEWEST, ENOUGH and LARGEST_RATES."""
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    stages, in_total = ints.shape[0], question == LARGEST_RATE_IN_TOTAL
    out = np.zeros((high + 1 if question == COSTS else stages + 1, 6))
    if question == LARGEST_RATE or in_total:
        out[0, 0] = largest_rate(chain, _fits_apart, low, in_total, high, np.zeros(1, dtype=np.int64))
        return out
    labels, plans = separate_frontier(chain, np.inf if question == COSTS else NEAR, question == COSTS)
    if question == CHEAPEST:
        _write_separate_plan(chain, labels, plans, out, question == COSTS)
        return out
    for n in range(high + 1):
        out[n, 0] = np.inf
    for i in range(labels.shape[0]):
        used = int(np.int64(0))
        for s in range(stages):
            used += plans[i, s, 0]
        out[used, 0] = min(out[used, 0], labels[i, COST])
    for n in range(1, high + 1):
        out[n, 0] = min(out[n, 0], out[n - 1, 0])
    return out


_CHAIN = (FLOATS_3D, FLOATS, INTS_2D, FLOATS_2D, BOOLS_2D, FLOATS, INTS)
ENTRIES = (
    Entry(Group.TICK, search_colocated, (*_CHAIN, INTEGER, INTEGER, INTEGER)),
    Entry(Group.TICK, describe_plan, (*_CHAIN, types.boolean, INTS, INTS, INTS)),
    Entry(Group.TICK, describe_fleet, (*_CHAIN, INTS_2D, INTS_2D)),
    Entry(Group.TICK, split_slots, (FLOATS_2D, FLOATS_2D)),
    Entry(Group.SEPARATE, search_separate, (*_CHAIN, INTEGER, INTEGER, INTEGER)),
)
"""The heaviest first."""
