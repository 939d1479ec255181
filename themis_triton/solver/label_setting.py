"""Label setting with dominance: one choice per stage, least cost and then least latency, exact in floating point, without a grid.

A label is a partial plan: what the stages of a part of the graph spend in each dimension (a row of COST, LATENCY, USED, MEMORY).
"""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.dominance import COST, EXACT, LATENCY, MEMORY, PRICED, USED, copy_rows, frontier
from themis_triton.solver.join_kernels import JOIN_LEFT, JOIN_PARALLEL, JOIN_RIGHT, joined_ms, node_weights
from themis_triton.solver.label_bounds import least_elsewhere, limits_of, relax
from themis_triton.solver.surface import FloatArray, IntArray

COST_TOLERANCE = 1e-9
LATENCY_TOLERANCE_MS = 1e-6


@kernel
def _joined(
    labels: FloatArray,
    start: int,
    end: int,
    choices: FloatArray,
    first: int,
    last: int,
    parallel: int,
    least: FloatArray,
    node: int,
    limits: FloatArray,
    price: float,
    weight: float,
) -> tuple[FloatArray, IntArray]:
    """Every label of `start` to `end` with every choice of the other part, without those that are dominated or no completion holds for."""
    size, count = end - start, last - first
    grown = np.empty((size * count, 4))
    origin = np.empty((size * count, 2), dtype=np.int64)
    kept = int(np.int64(0))
    for i in range(start, end):
        for j in range(first, last):
            cost, latency = labels[i, COST] + choices[j, COST], joined_ms(labels[i, LATENCY], choices[j, LATENCY], parallel)
            used, memory = labels[i, USED] + choices[j, USED], labels[i, MEMORY] + choices[j, MEMORY]
            if latency + least[node, LATENCY] > limits[LATENCY] + LATENCY_TOLERANCE_MS:
                continue
            priced = cost + price * weight * latency + least[node, PRICED]
            if cost + least[node, COST] > limits[COST] or priced > limits[COST] + price * limits[LATENCY]:
                continue
            if used + least[node, USED] > limits[USED] or memory + least[node, MEMORY] > limits[MEMORY]:
                continue
            grown[kept, COST], grown[kept, LATENCY], grown[kept, USED], grown[kept, MEMORY] = cost, latency, used, memory
            origin[kept, 0], origin[kept, 1] = i, j
            kept += 1
    keep = frontier(grown, kept, limits[EXACT])
    labels_kept, origin_kept = np.empty((keep.shape[0], 4)), np.empty((keep.shape[0], 2), dtype=np.int64)
    copy_rows(grown, labels_kept, keep)
    copy_rows(origin, origin_kept, keep)
    return labels_kept, origin_kept


@kernel
def _picks_of_stage(origin: IntArray, stages: int, s: int) -> IntArray:
    """The choice of each stage by label, −1 for all stages but s."""
    chosen = np.empty((origin.shape[0], stages), dtype=np.int64)
    for i in range(origin.shape[0]):
        for other in range(stages):
            chosen[i, other] = -1
        chosen[i, s] = origin[i, 1]
    return chosen


@kernel
def _picks_of_join(origin: IntArray, left: IntArray, right: IntArray, stage: int) -> IntArray:
    """The choices of both parts. The right one is a stage, or (`stage` at least S) rows of `right`."""
    stages = left.shape[1]
    chosen = np.empty((origin.shape[0], stages), dtype=np.int64)
    for i in range(origin.shape[0]):
        for s in range(stages):
            chosen[i, s] = left[origin[i, 0], s]
            if stage >= stages:
                chosen[i, s] = max(chosen[i, s], right[origin[i, 1], s])
        if stage < stages:
            chosen[i, stage] = origin[i, 1]
    return chosen


@kernel
def _room_for(labels: FloatArray, chosen: IntArray, size: int, more: int) -> tuple[FloatArray, IntArray]:
    """The same first `size` rows in arrays that hold `more` rows beyond them."""
    if size + more <= labels.shape[0]:
        return labels, chosen
    rows = max(2 * labels.shape[0], size + more)
    labels_grown, chosen_grown = np.empty((rows, 4)), np.empty((rows, chosen.shape[1]), dtype=np.int64)
    for i in range(size):
        for d in range(4):
            labels_grown[i, d] = labels[i, d]
        for s in range(chosen.shape[1]):
            chosen_grown[i, s] = chosen[i, s]
    return labels_grown, chosen_grown


@kernel
def all_labels(choices: FloatArray, counts: IntArray, ints: IntArray, limits: FloatArray, within: float) -> tuple[FloatArray, IntArray]:
    """The frontier's labels that cost at most `within` times a good plan: (float64[m, 4] by cost, chosen int64[m, stages]).

    `choices[s, :counts[s]]` holds (cost, latency ms, use, memory) rows, `limits` their upper bounds over the graph that `ints` joins.
    `within` infinite: the whole frontier. Labels that no completion brings under the bound are dropped (a Lagrangian lower bound).
    """
    stages = counts.shape[0]
    bounds, price = limits_of(limits[COST], limits[LATENCY], limits[USED], limits[MEMORY], limits[EXACT]), 0.0
    weights = node_weights(ints)
    if within < np.inf:
        price, good = relax(choices, counts, ints, weights, limits)
        bounds[COST] = min(limits[COST], good * within)
    bounds[COST] += COST_TOLERANCE * (1.0 + abs(bounds[COST])) if bounds[COST] < np.inf else 0.0
    least = least_elsewhere(choices, counts, ints, weights, price)
    # The labels of the joins one after the other: those of join k are rows first[k] to first[k + 1].
    pool, picks = np.empty((256, 4)), np.empty((256, stages), dtype=np.int64)
    first, nothing = np.zeros(stages + 1, dtype=np.int64), np.zeros((1, 4))
    zero, one = int(np.int64(0)), int(np.int64(1))
    labels, chosen = pool, picks
    for k in range(max(1, stages - 1)):
        left, right, node = ints[k, JOIN_LEFT], ints[k, JOIN_RIGHT], stages + k
        if left < stages:
            row = choices[left]
            labels, origin = _joined(nothing, zero, one, row, zero, counts[left], zero, least, left, bounds, price, weights[left])
            chosen, start, end = _picks_of_stage(origin, stages, left), zero, labels.shape[0]
        else:
            labels, chosen, start, end = pool, picks, first[left - stages], first[left - stages + 1]
        if stages == 1:
            break
        rows, other, last = pool, first[max(0, right - stages)], first[max(0, right - stages) + 1]
        if right < stages:
            rows, other, last = choices[right], zero, counts[right]
        parallel = ints[k, JOIN_PARALLEL]
        labels, origin = _joined(labels, start, end, rows, other, last, parallel, least, node, bounds, price, weights[node])
        chosen = _picks_of_join(origin, chosen, picks, right)
        pool, picks = _room_for(pool, picks, first[k], labels.shape[0])
        for i in range(labels.shape[0]):
            for d in range(4):
                pool[first[k] + i, d] = labels[i, d]
            for s in range(stages):
                picks[first[k] + i, s] = chosen[i, s]
        first[k + 1] = first[k] + labels.shape[0]
    return labels, chosen


@flat_kernel
def cheapest(labels: FloatArray, exact: float, used: float) -> int:
    """The row of least cost, ties within the tolerance to the lower latency; −1 when there is none.

    With `exact` above 0 only rows with the use `used` count.
    """
    best = -1
    for i in range(labels.shape[0]):
        if exact > 0.0 and labels[i, USED] != used:
            continue
        if best < 0:
            best = i
            continue
        near = labels[i, COST] <= labels[best, COST] + COST_TOLERANCE
        if labels[i, COST] < labels[best, COST] - COST_TOLERANCE or (near and labels[i, LATENCY] < labels[best, LATENCY]):
            best = i
    return best
