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

# Columns of Chain.ints and Chain.floats (a row a stage), and places in Chain.rule; those of Chain.rate stand in `queueing`, those of joins
# in `join_kernels`.
MIN_INSTANCES, MAX_INSTANCES, MIN_SERVERS, MAX_SERVERS, BESIDE = 0, 1, 2, 3, 7
SERVER_PRICE, INSTANCE_PRICE, MEMORY_BYTES, DELAY_MS, RATIO, IN_TURN, OTHER_RPS, MOST_CALLS = 0, 1, 2, 3, 4, 5, 6, 7
QUEUEING, CORES, WHOLE, ELSEWHERE, MAX_TOTAL_SERVERS, PROCESSES, EXTRA_PLACES, SLOWER = 0, 1, 2, 3, 4, 5, 6, 7
CAPACITY_TOLERANCE = 1e-9


class Chain(NamedTuple):
    """A packed problem. S stages, B batch sizes, K busy instances (or cores).

    `latency` float64[2·S, B, K] ms: S at the percentile, then S means, by which capacity counts; `gather` float64[B], see `gather_table`;
    `ints` int64[S, 8]; `floats` float64[S, 8]; `allowed` bool[S, B]; `rate` float64[9]; `rule` int64[8], of which SLOWER is 1 where no wait
    falls with the rate.
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
    """The capacity that a stage must have: its share of the rate, headroom for how its requests vary, and other requests.

    Requests of which each makes r calls vary as much as √(r·R) times as many, where R is the largest such number, 1 at least.
    Other requests raise the variance, and so the headroom; where demand is rounded, they have a headroom of their own.
    """
    ratio, other, rate = chain.floats[s, RATIO], chain.floats[s, OTHER_RPS], chain.rate
    weight = math.sqrt(ratio * max(1.0, chain.floats[s, MOST_CALLS]))
    wanted: float = ratio * rate[RATE_GROWING] + (rate[WANTED] - rate[RATE_GROWING]) * weight
    if other > 0.0:
        own = 0.0 if chain.rule[WHOLE] else rate[DISPERSION] * rate[RATE_GROWING] * weight * weight
        wanted += other + rate[SIGMAS] * (math.sqrt(own + rate[DISPERSION] * other) - math.sqrt(own))
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
    """Where the surface is read, in busy instances on the device: usually with single requests, usually with batches, at the percentile.

    `limit`: the instances there, or those that count.
    """

    single: float
    batched: float
    most: int
    limit: int


@flat_kernel
def set_arrivals(chain: Chain, s: int, part: float, arrivals: FloatArray, column: int) -> None:
    """Write what this part of a stage's requests brings to a device: requests/ms, and those that would vary as much as they do.

    Of up to r > 1 requests that one of the chain makes at once, each counts r times for the variance.
    """
    share, other = part * chain.floats[s, RATIO], part * chain.floats[s, OTHER_RPS] / 1000.0
    own = chain.rate[RATE_GROWING] / 1000.0 * share
    arrivals[0, column], arrivals[1, column] = own + other, own * max(1.0, part * chain.floats[s, MOST_CALLS]) + other


@flat_kernel
def busy_columns(chain: Chain, latency_ms: FloatArray, arrivals: FloatArray, total: int) -> Busy:
    """For the stages with these surfaces, which share a device with `total` instances: all of them busy with the paper's forms.

    `arrivals`: a column a stage, see `set_arrivals`.
    """
    elsewhere, rate = chain.rule[ELSEWHERE], chain.rate
    if chain.rule[QUEUEING] == PAPER_FORM:
        return Busy(float(total + elsewhere), float(total + elsewhere), total + elsewhere, total + elsewhere)
    single, batched = usual_busy(latency_ms, arrivals[0], total, elsewhere)
    most = busy_bound(latency_ms, arrivals, total, elsewhere, rate[DISPERSION])
    return Busy(max(single, batched) + elsewhere, batched + elsewhere, most + elsewhere, total + elsewhere)


@flat_kernel
def _with_own_branches(chain: Chain, s: int, busy: Busy, servers: int) -> Busy:
    """Where the surface is read beside other stages of the same request: all of them busy at least, and a share on each server more."""
    others, elsewhere = chain.ints[s, BESIDE], chain.rule[ELSEWHERE]
    limit, least, share = float(busy.limit), 1.0 + others + elsewhere, others / servers
    single, batched = min(max(busy.single + share, least), limit), min(max(busy.batched + share, least), limit)
    return Busy(single, batched, min(max(busy.most + math.ceil(share), 1 + others + elsewhere), busy.limit), busy.limit)


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
    return stage_times(chain, s, busy, servers if places == 1 else servers // places, places / servers, places * instances, batch)


@flat_kernel
def stage_times(chain: Chain, s: int, busy: Busy, servers: int, part: float, instances: int, batch: int) -> tuple[float, float]:
    """(service ms, wait ms) at the percentile on one of `servers` servers that gets this part of the stage's requests.

    Growing waits are taken at RATE_GROWING, falling ones at RATE_FALLING. The paper's forms gather batches in one central queue.
    Of several requests that one of the chain makes, those in turn take their times one after the other, and the others come at once.
    """
    rate, delay_ms, turns = chain.rate, chain.floats[s, DELAY_MS], chain.floats[s, IN_TURN]
    if chain.ints[s, BESIDE] > 0:
        busy = _with_own_branches(chain, s, busy, servers)
    if chain.rule[QUEUEING] == PAPER_FORM:
        gather = gather_ms(chain.gather[batch - 1], rate[RATE_FALLING] * chain.floats[s, RATIO] + chain.floats[s, OTHER_RPS])
        return turns * chain.latency[s, batch - 1, busy.most - 1], turns * gather
    workers = 1 if chain.rule[CORES] else instances
    if chain.rule[QUEUEING] == CENTRAL_QUEUE:
        workers, part, servers = workers * servers, part * servers, 1
    share, other = part * chain.floats[s, RATIO], part * chain.floats[s, OTHER_RPS]
    delay, longest, falling = 0.0, 0.0, rate[RATE_FALLING] * share + other
    if delay_ms > 0.0 and batch > 1:
        longest = delay_ms
        delay = min(delay_ms, chain.gather[batch - 1] * 1000.0 / falling) if falling > NO_RATE_RPS else 0.0
    usual = busy.batched + (busy.single - busy.batched) / batch
    per_ms = (rate[RATE_GROWING] * share + other) / 1000.0
    calls, group = max(1.0, chain.floats[s, RATIO] / turns), max(1.0, part * chain.floats[s, MOST_CALLS] / turns)
    service, wait = batching_wait(chain.latency[s], usual, busy.most, servers, workers, batch, per_ms, longest, calls, group, rate)
    return turns * service, turns * (wait + delay)


@flat_kernel
def best_batch(chain: Chain, s: int, full: int, busy: Busy, servers: int, instances: int) -> tuple[int, float]:
    """(batch, ms) of the fastest allowed batch size that carries the stage; batch 0 and infinity when none does.

    `full` indexes the surface for the capacity, `busy` for the times.
    """
    wanted, best, least = required_rps(chain, s), 0, np.inf
    paper, floor = chain.rule[QUEUEING] == PAPER_FORM, chain.floats[s, IN_TURN] * chain.latency[s, 0, busy.most - 1]
    for batch in range(1, chain.allowed.shape[1] + 1):
        if not chain.allowed[s, batch - 1]:
            continue
        if servers * server_capacity_rps(chain, s, instances, batch, full) < wanted * (1.0 - CAPACITY_TOLERANCE):
            continue
        service, wait = place_times(chain, s, busy, servers, instances, batch)
        if service + wait < least:
            best, least = batch, service + wait
            if not paper and least <= floor:
                break  # no request is faster
    return best, least
