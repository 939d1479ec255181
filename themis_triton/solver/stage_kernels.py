"""The kernels' view of a problem, and what one choice of a stage means: its capacity, its service time and its wait."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from themis_triton.jit import flat_kernel
from themis_triton.solver.queueing import (
    CENTRAL_QUEUE,
    DISPERSION,
    EXTRA,
    NO_RATE_RPS,
    PAPER_FORM,
    RATE_FALLING,
    RATE_GROWING,
    SIGMAS,
    WANTED,
    batching_wait,
    busy_bound,
    gather_ms,
    usual_busy,
)
from themis_triton.solver.surface import BoolArray, FloatArray, IntArray

# Columns of Chain.ints and Chain.floats (a row a stage), and places in Chain.rule; those of Chain.rate stand in `queueing`.
MIN_INSTANCES, MAX_INSTANCES, MIN_SERVERS, MAX_SERVERS = 0, 1, 2, 3
SERVER_PRICE, INSTANCE_PRICE, MEMORY_BYTES, DELAY_MS, RATIO = 0, 1, 2, 3, 4
QUEUEING, CORES, WHOLE, ELSEWHERE, MAX_TOTAL_SERVERS, PROCESSES, EXTRA_PLACES = 0, 1, 2, 3, 4, 5, 6
CAPACITY_TOLERANCE = 1e-9


class Chain(NamedTuple):
    """A packed problem. S stages, B batch sizes, K busy instances (or cores).

    `latency` float64[2·S, B, K] ms: S at the percentile, then S means, by which capacity counts; `gather` float64[B], see `gather_table`;
    `ints` int64[S, 4]; `floats` float64[S, 5]; `allowed` bool[S, B]; `rate` float64[9]; `rule` int64[7].
    """

    latency: FloatArray
    gather: FloatArray
    ints: IntArray
    floats: FloatArray
    allowed: BoolArray
    rate: FloatArray
    rule: IntArray


@flat_kernel
def set_rate(chain: Chain, low_rps: float, high_rps: float) -> None:
    """Ask about all rates of an interval at once: whatever grows with the rate is taken at its low end, whatever falls at its high end.

    What is infeasible then is infeasible at every rate inside; with both ends equal the answer is exact.
    """
    rate = chain.rate
    rate[RATE_GROWING], rate[RATE_FALLING] = low_rps, high_rps
    wanted = low_rps + rate[SIGMAS] * math.sqrt(rate[DISPERSION] * low_rps) + rate[EXTRA]
    rate[WANTED] = np.rint(wanted) if chain.rule[WHOLE] else wanted


@flat_kernel
def server_capacity_rps(chain: Chain, s: int, instances: int, batch: int, full: int) -> float:
    """Requests/s of one server with `full` instances (or cores) busy; a replica's is rounded down for the paper's rule."""
    capacity: float = 1000.0 * batch / chain.latency[chain.ints.shape[0] + s, batch - 1, full - 1]
    if chain.rule[WHOLE]:
        capacity = math.floor(capacity + CAPACITY_TOLERANCE)
    return capacity if chain.rule[CORES] else capacity * instances


@flat_kernel
def required_rps(chain: Chain, s: int) -> float:
    """The capacity that a stage must have: its share of the rate, and headroom that grows with the larger of r and √r."""
    ratio, rate = chain.floats[s, RATIO], chain.rate
    wanted: float = ratio * rate[RATE_GROWING] + (rate[WANTED] - rate[RATE_GROWING]) * max(ratio, math.sqrt(ratio))
    return wanted


@flat_kernel
def servers_for(wanted: float, capacity: float) -> int:
    """Least servers that carry `wanted`; 0 stands for: no number does."""
    if wanted <= CAPACITY_TOLERANCE:
        return 1
    if capacity <= 0.0 or wanted / capacity > 1e9:
        return 0
    return max(1, math.ceil(wanted * (1.0 - CAPACITY_TOLERANCE) / capacity))


class Busy(NamedTuple):
    """Where the surface is read, in busy instances on the device: usually with single requests, usually with batches, at the percentile."""

    single: float
    batched: float
    most: int


@flat_kernel
def busy_columns(chain: Chain, latency_ms: FloatArray, shares: FloatArray, total: int) -> Busy:
    """For the stages with these surfaces, which share a device with `total` instances: all of them busy with the paper's forms.

    `shares[s]` of the chain's rate reaches the device as requests for the stage of `latency_ms[s]`.
    """
    elsewhere, rate = chain.rule[ELSEWHERE], chain.rate
    if chain.rule[QUEUEING] == PAPER_FORM:
        return Busy(float(total + elsewhere), float(total + elsewhere), total + elsewhere)
    per_ms = rate[RATE_GROWING] / 1000.0
    single, batched = usual_busy(latency_ms, shares, per_ms, total, elsewhere)
    most = busy_bound(latency_ms, shares, per_ms, total, elsewhere, rate[DISPERSION])
    return Busy(max(single, batched) + elsewhere, batched + elsewhere, most + elsewhere)


@flat_kernel
def places_per_queue(chain: Chain, servers: int) -> int:
    """How many of the places draw from one queue at least: extra places share that of a process, of which there may be more."""
    extra = chain.rule[EXTRA_PLACES]
    if extra == 0:
        return 1
    queues = max(min(chain.rule[PROCESSES], servers), servers - extra, 1)
    return int(max(1, servers // queues))


@flat_kernel
def place_times(chain: Chain, s: int, busy: Busy, servers: int, instances: int, batch: int) -> tuple[float, float]:
    """`stage_times` on one of `servers` equal places; those of one process are one queue with the instances of them all."""
    places = places_per_queue(chain, servers)
    share = places * chain.floats[s, RATIO] / servers
    return stage_times(chain, s, busy, servers if places == 1 else servers // places, share, places * instances, batch)


@flat_kernel
def stage_times(chain: Chain, s: int, busy: Busy, servers: int, share: float, instances: int, batch: int) -> tuple[float, float]:
    """(service ms, wait ms) at the percentile on one of `servers` servers that gets `share` of the chain's rate as this stage's requests.

    Growing waits are taken at RATE_GROWING, falling ones at RATE_FALLING. The paper's forms gather batches in one central queue.
    """
    rate, delay_ms = chain.rate, chain.floats[s, DELAY_MS]
    if chain.rule[QUEUEING] == PAPER_FORM:
        return chain.latency[s, batch - 1, busy.most - 1], gather_ms(chain.gather[batch - 1], rate[RATE_FALLING] * chain.floats[s, RATIO])
    workers = 1 if chain.rule[CORES] else instances
    if chain.rule[QUEUEING] == CENTRAL_QUEUE:
        workers, share, servers = workers * servers, share * servers, 1
    delay, longest, falling = 0.0, 0.0, rate[RATE_FALLING] * share
    if delay_ms > 0.0 and batch > 1:
        longest = delay_ms
        delay = min(delay_ms, chain.gather[batch - 1] * 1000.0 / falling) if falling > NO_RATE_RPS else 0.0
    usual = busy.batched + (busy.single - busy.batched) / batch
    per_ms = rate[RATE_GROWING] * share / 1000.0
    service, wait = batching_wait(chain.latency[s], usual, busy.most, servers, workers, batch, per_ms, longest, rate)
    return service, wait + delay


@flat_kernel
def best_batch(chain: Chain, s: int, full: int, busy: Busy, servers: int, instances: int) -> tuple[int, float]:
    """(batch, ms) of the fastest allowed batch size that carries the stage; batch 0 and infinity when none does.

    `full` indexes the surface for the capacity, `busy` for the times.
    """
    wanted = required_rps(chain, s)
    best, least = 0, np.inf
    for batch in range(1, chain.allowed.shape[1] + 1):
        if not chain.allowed[s, batch - 1]:
            continue
        if servers * server_capacity_rps(chain, s, instances, batch, full) < wanted * (1.0 - CAPACITY_TOLERANCE):
            continue
        service, wait = place_times(chain, s, busy, servers, instances, batch)
        if service + wait < least:
            best, least = batch, service + wait
    return best, least
