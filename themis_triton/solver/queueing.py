"""How long a request waits before its batch starts: the paper's three forms, and a work-conserving dynamic batcher.

Each form is the sum of a part that only falls with the rate (gathering a batch) and a part that only grows with it (waiting for a
free instance). The kernels therefore take the rate twice, so that a whole interval of rates can be ruled out at once.
"""

from __future__ import annotations

import math

import numpy as np

from themis_triton.core.policy import QueueingModel
from themis_triton.jit import flat_kernel
from themis_triton.solver.surface import FloatArray

DYNAMIC_BATCHING, PAPER_FORM, CENTRAL_QUEUE = 0, 1, 2
SLO, RATE_GROWING, RATE_FALLING, WANTED, TAIL, MEMORY_LIMIT, DISPERSION, SIGMAS, EXTRA = 0, 1, 2, 3, 4, 5, 6, 7, 8  # of Chain.rate
BUSY_SIGMAS = 2.0  # deviations of the number of busy instances that a request at the percentile meets
TAIL_MARGIN = 0.6
NEGLIGIBLE_LOAD, STEEPEST = 1e-15, 40.0  # below this load the tail counts as falling this fast
NO_RATE_RPS = 1e-9  # one request in thirty years counts as no arrivals
BUSY_GAIN = 1.1  # how fast the share of busy instances rises with the load
INDEPENDENT_ENDS = 4  # running batches whose ends count as independent
POOLED_SERVERS = 4  # servers that a balancer which always knows the emptiest one makes to one queue
FIXED_POINT_STEPS = 40


def stage_tail(percentile: float, stages: float) -> float:
    """The tail at which each of S calls in turn, one a stage at least, is taken, so that their sum stands at the chain's percentile.

    The chain's tail times `min(S^1.5, 1.7·S)`, which stays inside what the sum of S independent exponential waits allows, less a
    margin for what the waits leave out.
    """
    return min(0.5, TAIL_MARGIN * (1 - percentile / 100) * min(math.pow(stages, 1.5), 1.7 * stages))


def queueing_code(model: QueueingModel) -> int:
    """The kernels' code of a model; the paper's forms differ only in their table."""
    return {QueueingModel.DYNAMIC_BATCHING: DYNAMIC_BATCHING, QueueingModel.CENTRAL_QUEUE: CENTRAL_QUEUE}.get(model, PAPER_FORM)


def gather_table(model: QueueingModel, percentile: float, max_batch: int) -> FloatArray:
    """Time to gather a batch of 1..max_batch in units of the mean gap between arrivals; float64[max_batch].

    SLO_MARGIN: 0. CONSTANT: `b − 1`. EXPONENTIAL: `(b − 1)·(−ln(1 − p))`. GAMMA, and other queue delays: the
    p-quantile of the b − 1 gaps' sum.
    """
    tail = 1 - percentile / 100
    extra = np.arange(max_batch, dtype=np.float64)
    if model is QueueingModel.SLO_MARGIN:
        return np.zeros(max_batch)
    if model is QueueingModel.CONSTANT:
        return extra
    if model is QueueingModel.EXPONENTIAL:
        return np.asarray(extra * -math.log(tail), dtype=np.float64)
    return np.array([erlang_quantile(shape, tail) for shape in range(max_batch)])


def erlang_quantile(shape: int, tail: float) -> float:
    """The time by which `shape` arrivals of a Poisson process with rate 1 have come with probability 1 − tail; 0 for shape 0."""
    if shape == 0:
        return 0.0
    low, high = 0.0, shape + 20.0 * math.sqrt(shape) + 40.0 - 2 * math.log(tail)
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if _poisson_below(shape, middle) > tail:
            low = middle
        else:
            high = middle
    return high


def _poisson_below(shape: int, mean: float) -> float:
    """P(Poisson(mean) < shape), summed from the largest term's logarithm so that nothing underflows early."""
    terms = [i * math.log(mean) - mean - math.lgamma(i + 1) for i in range(shape)]
    peak = max(terms)
    return math.exp(peak) * sum(math.exp(term - peak) for term in terms)


@flat_kernel
def gather_ms(unit: float, rate_rps: float) -> float:
    """The paper's forms in whole ms, rounded up; zero wait at zero arrivals."""
    if rate_rps <= NO_RATE_RPS or unit == 0.0:
        return 0.0
    return float(np.ceil(unit * 1000.0 / rate_rps - 1e-9))


@flat_kernel
def all_busy_probability(instances: int, load: float) -> float:
    """Erlang's C: the share of arrivals that find every instance busy; `load` in busy instances, 1 at or above `instances`.

    By the recursion of Erlang's B for 1/B, which needs no division in its loop; without load 1/B is infinite and the wait is zero.
    """
    if load >= instances:
        return 1.0
    per_load, inverse = 1.0 / load, 1.0
    for i in range(1, instances + 1):
        inverse = 1.0 + inverse * (i * per_load)
    blocked = 1.0 / inverse
    return blocked / (1.0 - (load / instances) * (1.0 - blocked))


@flat_kernel
def decay(load: float, ahead: float) -> float:
    """θ > 0 with `load·(e^θ − 1) = ahead·θ`: how fast the tail of what is left waiting falls, per request (Lundberg's equation)."""
    if load <= ahead * NEGLIGIBLE_LOAD:
        return STEEPEST
    ratio = ahead / load
    if ratio <= 1.0:
        return 0.0
    theta = 2.0 * math.log(ratio) + 2.0 * (ratio - 1.0) / ratio  # right of the root, so that Newton's steps only fall
    for _ in range(40):
        power = math.exp(theta)
        step = (power - 1.0 - ratio * theta) / (power - ratio)
        theta -= step
        if abs(step) < 1e-10 * theta:
            break
    return theta


@flat_kernel
def at_busy(latency_ms: FloatArray, batch: int, busy: float) -> float:
    """The surface between its columns, linear in the number of busy instances; `busy` from 1 to the last column."""
    column = min(int(busy), latency_ms.shape[1]) - 1
    part = busy - column - 1
    ms: float = latency_ms[batch - 1, column]
    if part > 0.0:
        ms = ms * (1.0 - part) + latency_ms[batch - 1, column + 1] * part
    return ms


@flat_kernel
def batching_wait(
    latency_ms: FloatArray,
    usual: float,
    busy: int,
    servers: int,
    instances: int,
    batch: int,
    rate_per_ms: float,
    held_ms: float,
    calls: float,
    group: float,
    rate: FloatArray,
) -> tuple[float, float]:
    """(service ms, wait ms) of a request at the percentile on one of `servers` servers, with work-conserving batches up to `batch`.

    `latency_ms[b - 1, k - 1]` is read at k = `usual` busy instances for other batches and at k = `busy` for the request's own;
    `rate_per_ms` arrives at each server for this stage; a batch may wait `held_ms` to fill.

    The running batches have the smallest size that keeps up with the rate. A request finds no free instance with Erlang's probability
    P for single requests and the instances of up to four servers: the balancer sends it to the emptiest server. The first one of
    its server's c frees within `l·(1 − (tail/P)^(1/min(c, 4)))`, as if at most four ended independently (batches tend to start
    together). What rounds of full batches leave behind adds the exponential tail of Lundberg's equation, shared over the servers by
    the balancer. The request's own batch is what arrived meanwhile.

    A request of the chain makes `calls` calls at once in the mean: the last one counts, each at its share of the tail. One at the
    percentile sends a `group` of them to each server. A group holds as many instances as it has calls; calls beyond all instances wait
    for those of their own group.
    Not a theorem; `benchmarks/waits.py` holds it against a request-level simulation and states its error.
    """
    full, tail, dispersion = at_busy(latency_ms, batch, usual), rate[TAIL] / calls, rate[DISPERSION] * group
    if rate_per_ms * full >= instances * batch:
        return latency_ms[batch - 1, busy - 1], np.inf
    typical = int(np.int64(1))
    while typical < batch and instances * typical < rate_per_ms * at_busy(latency_ms, typical, usual):
        typical += 1
    single, pooled, wait = at_busy(latency_ms, int(np.int64(1)), usual), max(1, int(min(servers, POOLED_SERVERS) / calls)), 0.0
    units = max(1, int(instances / group))
    load = rate_per_ms * single * (units / instances)
    pressed = all_busy_probability(units, load)
    if pooled > 1 and pressed > tail:  # else the wait is zero anyhow: a pool only helps
        pressed = all_busy_probability(pooled * units, pooled * load)
    if pressed > tail:
        rounds = max(1.0, group / (instances * typical))
        wait = rounds * at_busy(latency_ms, typical, usual) * (1.0 - (tail / pressed) ** (1.0 / min(units, INDEPENDENT_ENDS)))
        theta = decay(rate_per_ms * full, float(instances * batch))
        wait += max(0.0, math.log(math.sqrt(pressed) / tail)) * dispersion / (theta * batch * servers) * full / instances
    behind = max(0.0, group - instances)
    wait += min(1.0, behind) * single + max(0.0, math.ceil(behind / (instances * batch) - 1e-9) - 1.0) * full
    arrivals = rate_per_ms * (wait + held_ms) + max(0.0, behind / instances - 1.0)
    size = min(float(batch), 1.0 + arrivals) if arrivals > tail else 1.0
    whole = int(size)
    service = latency_ms[whole - 1, busy - 1]
    if size > whole:
        service += (size - whole) * (latency_ms[whole, busy - 1] - service)
    return service, wait


@flat_kernel
def busy_bound(latency_ms: FloatArray, arrivals: FloatArray, total: int, elsewhere: int, dispersion: float) -> int:
    """How many of `total` instances a request at the percentile finds busy on its device, itself included.

    The smallest k with `1 + m + σ·√m ≤ k`, m being the mean busy instances of all stages when single requests find k busy.
    `arrivals[0, s]` per ms reach the device, and vary as `arrivals[1, s]` would: those of r > 1 requests at once as r times as many.
    `latency_ms[s, b - 1, k - 1]`. The same for every choice of counts and batches, so that it does not couple the stages.
    """
    for k in range(1, total):
        mean = variance = 0.0
        for s in range(arrivals.shape[1]):
            mean += arrivals[0, s] * latency_ms[s, 0, k + elsewhere - 1]
            variance += arrivals[1, s] * latency_ms[s, 0, k + elsewhere - 1]
        if 1.0 + mean + BUSY_SIGMAS * math.sqrt(variance * dispersion) <= k + 1e-9:
            return k
    return total


@flat_kernel
def usual_busy(latency_ms: FloatArray, arrivals: FloatArray, total: int, elsewhere: int) -> tuple[float, float]:
    """Busy instances of `total` that a batch usually meets, itself included: with single requests, and with shared batches.

    Each is the least fixed point of `k = 1 + (K − 1)·share`, K being the total. `share` is `min(1, m(k)/K)` for single requests, m being
    the mean number of busy instances that the `arrivals[s]` per ms need; where requests share batches, instances idle while others still
    serve theirs, and `tanh(1.1·m(k)/K)` fits the simulation.
    """
    single = batched = 1.0
    for form in range(2):
        usual = 1.0
        for _ in range(FIXED_POINT_STEPS):
            mean = 0.0
            for s in range(arrivals.shape[0]):
                mean += arrivals[s] * at_busy(latency_ms[s], int(np.int64(1)), usual + elsewhere)
            share = math.tanh(BUSY_GAIN * mean / total) if form == 1 else min(1.0, mean / total)
            following = 1.0 + (total - 1) * share
            if following - usual < 1e-9:
                break
            usual = following
        single, batched = (usual, batched) if form == 0 else (single, usual)
    return single, batched
