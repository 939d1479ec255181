"""The kernel for servers whose counts differ: requests spread over them by capacity, and each server has its own contention."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import kernel
from themis_triton.solver.stage_kernels import (
    CORES,
    ELSEWHERE,
    Busy,
    Chain,
    busy_columns,
    required_rps,
    server_capacity_rps,
    set_arrivals,
    stage_times,
)
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray


@kernel
def fleet_parts(chain: Chain, counts: IntArray, batches: IntArray, capacity: FloatArray) -> FloatArray:
    """The part of each stage's requests that each server gets: by capacity, as a least-request balancer does.

    float64[n, S]; writes all servers' requests/s of each stage into `capacity`.
    """
    servers, stages = counts.shape
    parts = np.zeros((servers, stages))
    for s in range(stages):
        capacity[s] = 0.0
    for i in range(servers):
        total = chain.rule[ELSEWHERE]
        for s in range(stages):
            total += counts[i, s]
        for s in range(stages):
            if counts[i, s] > 0:
                full = counts[i, s] if chain.rule[CORES] else total
                parts[i, s] = server_capacity_rps(chain, s, counts[i, s], batches[i, s], full)
                capacity[s] += parts[i, s]
    for i in range(servers):
        for s in range(stages):
            if capacity[s] > 0.0:
                parts[i, s] *= 1.0 / capacity[s]
    return parts


@kernel
def describe_fleet(
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
    """Each stage's (slowest server's ms, capacity requests/s, capacity required): float64[S, 3].

    `counts` and `batches` int64[n, S]; count 0: the server does not hold the stage.
    """
    chain = Chain(latency, gather, ints, floats, allowed, rate, rule)
    servers, stages = counts.shape
    out, capacity, holders = np.zeros((stages, 3)), np.empty(stages), np.zeros(stages, dtype=np.int64)
    arrivals = np.empty((2, stages))
    parts = fleet_parts(chain, counts, batches, capacity)
    for i in range(servers):
        for s in range(stages):
            holders[s] += 1 if counts[i, s] > 0 else 0
    for i in range(servers):
        total = int(np.int64(0))
        for s in range(stages):
            total += counts[i, s]
        if total == 0:
            continue
        for s in range(stages):
            set_arrivals(chain, s, parts[i, s], arrivals, s)
        busy = busy_columns(chain, chain.latency[:stages], arrivals, total)
        for s in range(stages):
            c = counts[i, s]
            if c > 0:
                at = Busy(float(c), float(c), c, c) if chain.rule[CORES] else busy
                service, wait = stage_times(chain, s, at, holders[s], parts[i, s], c, batches[i, s])
                out[s, 0] = max(out[s, 0], service + wait)
    for s in range(stages):
        out[s, 0] = out[s, 0] if capacity[s] > 0.0 else np.inf
        out[s, 1], out[s, 2] = capacity[s], required_rps(chain, s)
    return out
