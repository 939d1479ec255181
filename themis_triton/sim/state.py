"""The state of a request-level simulation as arrays, and the meaning of their columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from themis_triton.solver.surface import FloatArray, IntArray

NONE = -1
NEXT, FREE, FIRST_DEVICE, CROSSING_HEAD, CROSSING_TAIL, CENTRAL, CORES, NOISE, EVENTS, NEXT_CALL = range(10)
NOW_S, HOP_S, NOISE_CV, FIRST_TIMER_S, SLOWDOWN = range(5)
STEADY, LOGNORMAL, EXPONENTIAL = range(3)
SUCCESS, INFERENCES, EXECUTIONS, QUEUE_US, COMPUTE_US, BY_SIZE = range(6)
# Of a row: its present stage, its request, and the stages that it still waits for; of a request's own row: the row of the first of its
# stages (NONE where they are called one after the other), and its stages that have not ended. Of any row: its calls that have no answer,
# and the row that makes this one as one of its calls (NONE where it is no such call).
STAGE, REQUEST, AWAITED, FIRST_ROW, LEFT, PENDING, CALLER = range(7)
ARRIVALS, IN_FLIGHT, FAILURES, CURSOR, REFUSALS = range(5)
# Of a model's admission limit: requests/s (infinite: none), the most tokens, the tokens at a time, and that time.
LIMIT_RPS, MOST_TOKENS, TOKENS, TOKENS_S = range(4)
FAILED, REFUSED = 1, 2


class Engine(NamedTuple):
    """R requests in N rows, P pipelines, M models, S rows, D devices, Q queues, at most T batches, H histogram bounds.

    A server has one row for each device that it runs on. It is known by its first row, the owner of the others: this one has its
    queues, routes, outstanding requests and counters; instances, batches under way and contention are each row's own.
    A request that makes its calls one after the other is its own row. One whose stages run side by side has a row more for each stage.
    A row that makes several calls of its stage at once waits for the last one; each has a row of its own, behind all others.
    Times are seconds from the simulation's start. A queue is `s·M + m`, or `m` with the central dispatcher. Equal indexes of `batch…` are
    one batch under way; `running[d, :under_way[d]]` are the batches on a device; `first[d]` ends first, at `end_s[d]`.
    """

    service_s: FloatArray  # [M, B, K]
    chains: IntArray  # [P, L + 1], NONE after the last stage
    per_request: FloatArray  # [P, L + 1], requests of the stage per request, in the mean
    most_calls: IntArray  # [P, L + 1], the most that a request makes, where it differs from the mean
    sequential: IntArray  # [P, L + 1], whether they are made one after the other
    arrival_s: FloatArray  # [R], ascending
    pipeline: IntArray  # [R]
    rows: IntArray  # [N, 7], see STAGE
    following: IntArray  # [N]
    entered_s: FloatArray  # [N], time of entry into the stage, in the future while crossing the proxy
    ended_s: FloatArray  # [R], infinite before
    failed: IntArray  # [R], FAILED, or REFUSED by a limit
    follows: IntArray  # [P, L, L], 1 where the second stage waits for the first one
    device: IntArray  # [S]
    owner: IntArray  # [S], the first row of the row's server
    sibling: IntArray  # [S], the next row of the same server, NONE after the last
    routed: IntArray  # [S, M]
    instances: IntArray  # [S, M]
    max_batch: IntArray  # [S, M]
    delay_s: FloatArray  # [S, M]
    busy: IntArray  # [S, M]
    outstanding: IntArray  # [S, M]
    idle_s: FloatArray  # [S, M], when an instance last had nothing to take: it was free and the queue empty
    head: IntArray  # [Q]
    tail: IntArray  # [Q]
    length: IntArray  # [Q], all waiting requests
    deprioritized_head: IntArray  # [Q]
    deprioritized_tail: IntArray  # [Q]
    deprioritized: IntArray  # [Q], of these the ones that waited too long; `head` and `tail` are those of the others
    deprioritize_after_s: FloatArray  # [M], waiting time after which a request is served after all others
    timer_s: FloatArray  # [Q]
    batch_row: IntArray  # [T, 2], row and model
    batch_head: IntArray  # [T]
    batch_size: IntArray  # [T]
    batch_left: FloatArray  # [T], fraction
    batch_whole_s: FloatArray  # [T], service time of the whole batch at the present contention
    batch_factor: FloatArray  # [T]
    batch_start_s: FloatArray  # [T]
    free: IntArray  # [T]
    running: IntArray  # [D, T / D]
    under_way: IntArray  # [D]
    settled_s: FloatArray  # [D]
    end_s: FloatArray  # [D]
    first: IntArray  # [D]
    served: FloatArray  # [S, M, BY_SIZE + 2 B]: from BY_SIZE on, for each batch size, batches that ended and their µs
    routes: IntArray  # [M, 5]
    limits: FloatArray  # [M, 4]
    bounds_s: FloatArray  # [H], the last infinite
    histogram: IntArray  # [M, H], not cumulative
    ints: IntArray
    floats: FloatArray
    seed: npt.NDArray[np.uint64]  # [1]
