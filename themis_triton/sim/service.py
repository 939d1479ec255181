"""Service times, compiled: noise, and batches that share a device."""

from __future__ import annotations

import math

import numpy as np

from themis_triton.jit import flat_kernel, inlined
from themis_triton.sim.state import CORES, EXPONENTIAL, FIRST_DEVICE, LOGNORMAL, NOISE, NOISE_CV, SLOWDOWN, Engine
from themis_triton.solver.surface import FloatArray


@flat_kernel
def index_of_smallest(values: FloatArray) -> int:
    """Index of the smallest value."""
    best = 0
    for index in range(1, values.size):
        if values[index] < values[best]:
            best = index
    return best


@flat_kernel
def bucket(bounds: FloatArray, value: float) -> int:
    """Index of the first bound that is not below the value; the last bound is infinite."""
    low, high = 0, bounds.size - 1
    while low < high:
        middle = (low + high) // 2
        if bounds[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@flat_kernel
def uniform(e: Engine) -> float:
    """A number in (0, 1], by xorshift64*."""
    x = e.seed[0]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    e.seed[0] = x
    return (float((x * np.uint64(2685821657736338717)) >> np.uint64(11)) + 1.0) / 9007199254740992.0


@flat_kernel
def noise(e: Engine) -> float:
    """A factor of mean 1 for one batch's service time."""
    if e.ints[NOISE] == EXPONENTIAL:
        return -math.log(uniform(e))
    if e.ints[NOISE] == LOGNORMAL:
        sigma = math.sqrt(math.log1p(e.floats[NOISE_CV] ** 2))
        normal = math.sqrt(-2.0 * math.log(uniform(e))) * math.cos(2.0 * math.pi * uniform(e))
        return math.exp(sigma * normal - 0.5 * sigma * sigma)
    return 1.0


@inlined
def duration_s(e: Engine, batch: int) -> float:
    """Service time of the whole batch at the present contention."""
    row, model = e.batch_row[batch, 0], e.batch_row[batch, 1]
    share = e.instances[row, model] if e.ints[CORES] else e.under_way[e.device[row]]
    column = max(1, min(share, e.service_s.shape[2])) - 1
    whole: float = e.service_s[model, e.batch_size[batch] - 1, column] * e.batch_factor[batch] * e.floats[SLOWDOWN]
    return whole


@flat_kernel
def settle(e: Engine, device: int, now_s: float) -> None:
    """Record the progress of a device's batches until now; needed before their speed changes."""
    elapsed_s = now_s - e.settled_s[device]
    e.settled_s[device] = now_s
    if elapsed_s > 0.0:
        for index in range(e.under_way[device]):
            batch = e.running[device, index]
            e.batch_left[batch] -= elapsed_s / e.batch_whole_s[batch]


@flat_kernel
def reschedule(e: Engine, device: int, now_s: float) -> None:
    """Find the batch of a device that ends first, and the device with the first one; progress must be settled."""
    soonest_s = np.inf
    for index in range(e.under_way[device]):
        batch = e.running[device, index]
        e.batch_whole_s[batch] = duration_s(e, batch)
        end_s = now_s + max(0.0, e.batch_left[batch]) * e.batch_whole_s[batch]
        if end_s < soonest_s:
            soonest_s, e.first[device] = end_s, batch
    e.end_s[device] = soonest_s
    if device == e.ints[FIRST_DEVICE]:
        e.ints[FIRST_DEVICE] = index_of_smallest(e.end_s)
    elif soonest_s < e.end_s[e.ints[FIRST_DEVICE]]:
        e.ints[FIRST_DEVICE] = device
