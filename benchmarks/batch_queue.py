"""A discrete-event simulation of work-conserving batch servers, to hold the solver's waits against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from themis_triton.solver.jit import kernel

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@kernel
def _choose_server(inside: IntArray, stage: int, full_scan: bool) -> int:
    """Least request: of all servers, or of two drawn at random as Envoy does."""
    servers = inside.shape[0]
    if full_scan or servers == 1:
        best, ties = 0, 1
        for i in range(1, servers):
            if inside[i, stage] < inside[best, stage]:
                best, ties = i, 1
            elif inside[i, stage] == inside[best, stage]:
                ties += 1
                if np.random.random() * ties < 1.0:  # noqa: NPY002 - Numba's own seeded generator
                    best = i
        return best
    a, b = np.random.randint(0, servers), np.random.randint(0, servers)  # noqa: NPY002
    return a if inside[a, stage] <= inside[b, stage] else b


@kernel
def simulate(  # noqa: C901, PLR0912, PLR0915 - one event loop over flat arrays; calls would hand all of them around
    latency: FloatArray,
    counts: IntArray,
    batches: IntArray,
    delays_ms: FloatArray,
    servers: int,
    rate_rps: float,
    requests: int,
    seed: int,
    full_scan: bool,
) -> FloatArray:
    """Sojourn ms float64[requests, S + 1] of each request at each stage and end to end; Poisson arrivals, one device a server.

    `latency[s, b - 1, k - 1]` is the time of a batch of b that starts with k instances busy on its device, itself included.
    """
    np.random.seed(seed)  # noqa: NPY002
    stages, most = counts.shape[0], counts.max()
    widest = batches.max()
    entered = np.zeros((requests, stages + 1))
    queue = np.zeros((servers, stages, requests), dtype=np.int32)
    head, tail = np.zeros((servers, stages), dtype=np.int64), np.zeros((servers, stages), dtype=np.int64)
    inside = np.zeros((servers, stages), dtype=np.int64)
    ends = np.full((servers, stages, most), np.inf)
    held = np.zeros((servers, stages, most, widest), dtype=np.int32)
    sizes = np.zeros((servers, stages, most), dtype=np.int64)
    busy = np.zeros(servers, dtype=np.int64)
    result = np.zeros((requests, stages + 1))
    arrival, arrived, finished = 0.0, 0, 0
    gap = 1000.0 / rate_rps
    now = 0.0
    while finished < requests:
        # The next event: an arrival, a batch's end, or a queue delay that runs out.
        when, kind, at_i, at_s, at_c = (arrival if arrived < requests else np.inf), 0, 0, 0, 0
        for i in range(servers):
            for s in range(stages):
                idle = False
                for c in range(counts[s]):
                    if ends[i, s, c] < when:
                        when, kind, at_i, at_s, at_c = ends[i, s, c], 1, i, s, c
                    idle = idle or ends[i, s, c] == np.inf
                if idle and tail[i, s] > head[i, s]:
                    due = max(now, entered[queue[i, s, head[i, s]], s] + delays_ms[s])
                    if due < when:
                        when, kind, at_i, at_s = due, 2, i, s
        now = when
        if kind == 0:
            i = _choose_server(inside, 0, full_scan)
            entered[arrived, 0] = now
            queue[i, 0, tail[i, 0]] = arrived
            tail[i, 0] += 1
            inside[i, 0] += 1
            arrived += 1
            arrival = now - np.log(1.0 - np.random.random()) * gap  # noqa: NPY002
        elif kind == 1:
            i, s, c = at_i, at_s, at_c
            ends[i, s, c] = np.inf
            busy[i] -= 1
            for j in range(sizes[i, s, c]):
                r = held[i, s, c, j]
                inside[i, s] -= 1
                result[r, s] = now - entered[r, s]
                if s + 1 < stages:
                    to = _choose_server(inside, s + 1, full_scan)
                    entered[r, s + 1] = now
                    queue[to, s + 1, tail[to, s + 1]] = r
                    tail[to, s + 1] += 1
                    inside[to, s + 1] += 1
                else:
                    result[r, stages] = now - entered[r, 0]
                    finished += 1
        for i in range(servers):
            for s in range(stages):
                while tail[i, s] > head[i, s]:
                    waiting = tail[i, s] - head[i, s]
                    ripe = waiting >= batches[s] or now - entered[queue[i, s, head[i, s]], s] >= delays_ms[s] - 1e-9
                    free = -1
                    for c in range(counts[s]):
                        if ends[i, s, c] == np.inf:
                            free = c
                            break
                    if free < 0 or not ripe:
                        break
                    size = min(waiting, batches[s])
                    for j in range(size):
                        held[i, s, free, j] = queue[i, s, head[i, s] + j]
                    head[i, s] += size
                    sizes[i, s, free] = size
                    busy[i] += 1
                    ends[i, s, free] = now + latency[s, size - 1, busy[i] - 1]
    return result
