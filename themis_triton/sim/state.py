"""The state of a request-level simulation as arrays, and the meaning of their columns."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from themis_triton.solver.surface import FloatArray, IntArray

NONE = -1
NEXT, FREE, FIRST_DEVICE, CROSSING_HEAD, CROSSING_TAIL, CENTRAL, CORES, NOISE, EVENTS = range(9)
NOW_S, HOP_S, NOISE_CV, FIRST_TIMER_S, SLOWDOWN = range(5)
STEADY, LOGNORMAL, EXPONENTIAL = range(3)
SUCCESS, INFERENCES, EXECUTIONS, QUEUE_US, COMPUTE_US, BY_SIZE = range(6)
ARRIVALS, IN_FLIGHT, FAILURES, CURSOR = range(4)


class Engine(NamedTuple):
    """R requests, P pipelines, M models, S rows, D devices, Q queues, at most T batches, H histogram bounds.

    A server has one row for each device that it runs on. It is known by its first row, the owner of the others: this one has its
    queues, routes, outstanding requests and counters; instances, batches under way and contention are each row's own.
    Times are seconds from the simulation's start. A queue is `s·M + m`, or `m` with the central dispatcher. Equal indexes of `batch…` are
    one batch under way; `running[d, :under_way[d]]` are the batches on a device; `first[d]` ends first, at `end_s[d]`.
    """

    service_s: FloatArray  # [M, B, K]
    chains: IntArray  # [P, L + 1], NONE after the last stage
    arrival_s: FloatArray  # [R], ascending
    pipeline: IntArray  # [R]
    stage: IntArray  # [R]
    following: IntArray  # [R]
    entered_s: FloatArray  # [R], time of entry into the stage, in the future while crossing the proxy
    ended_s: FloatArray  # [R], infinite before
    failed: IntArray  # [R]
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
    routes: IntArray  # [M, 4]
    bounds_s: FloatArray  # [H], the last infinite
    histogram: IntArray  # [M, H], not cumulative
    ints: IntArray
    floats: FloatArray
    seed: npt.NDArray[np.uint64]  # [1]
