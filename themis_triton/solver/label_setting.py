"""Label setting with dominance: one choice per stage, least cost and then least latency, exact in floating point, without a grid.

A label is a partial plan: what the stages so far spend in each dimension (a row of COST, LATENCY, USED, MEMORY).
"""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.surface import FloatArray, IntArray

COST, LATENCY, USED, MEMORY, PRICED = 0, 1, 2, 3, 4
EXACT = 4  # of `limits`: above 0 where only labels of equal use compete
COST_TOLERANCE = 1e-9
LATENCY_TOLERANCE_MS = 1e-6


@flat_kernel
def _before(points: FloatArray, i: int, j: int) -> bool:
    if points[i, COST] != points[j, COST]:
        return bool(points[i, COST] < points[j, COST])
    return bool(points[i, LATENCY] < points[j, LATENCY])


@kernel
def order_by_cost(points: FloatArray, count: int) -> IntArray:
    """Indexes of the first `count` rows by cost, then latency (bottom-up merge sort, stable)."""
    order = np.empty(count, dtype=np.int64)
    for i in range(count):
        order[i] = i
    spare = np.empty(count, dtype=np.int64)
    width = 1
    while width < count:
        for start in range(0, count, 2 * width):
            left, middle, right = start, min(start + width, count), min(start + 2 * width, count)
            other = middle
            for at in range(start, right):
                if left < middle and (other >= right or not _before(points, order[other], order[left])):
                    spare[at] = order[left]
                    left += 1
                else:
                    spare[at] = order[other]
                    other += 1
        order, spare = spare, order
        width *= 2
    return order


@kernel
def frontier(points: FloatArray, count: int, exact: float) -> IntArray:
    """Rows that no other row dominates in cost, latency, use and memory, by cost. With `exact` above 0 only equal uses compete."""
    order = order_by_cost(points, count)
    kept = np.empty(count, dtype=np.int64)
    size = 0
    for at in range(count):
        i = order[at]
        dominated = False
        for back in range(size - 1, -1, -1):
            j = kept[back]
            fits = points[j, USED] == points[i, USED] if exact > 0.0 else points[j, USED] <= points[i, USED]
            if fits and points[j, LATENCY] <= points[i, LATENCY] and points[j, MEMORY] <= points[i, MEMORY]:
                dominated = True
                break
        if not dominated:
            kept[size] = i
            size += 1
    return kept[:size]


@flat_kernel
def copy_rows(source: FloatArray | IntArray, target: FloatArray | IntArray, keep: IntArray) -> None:
    """`target[i] = source[keep[i]]`, in plain loops: they compile several times faster than array expressions."""
    for i in range(keep.shape[0]):
        for d in range(source.shape[1]):
            target[i, d] = source[keep[i], d]


@kernel
def limits_of(cost: float, latency_ms: float, used: float, memory: float, exact: float) -> FloatArray:
    """Upper bounds in the order of a row's columns, then `exact` (see EXACT)."""
    limits = np.empty(5)
    limits[COST], limits[LATENCY], limits[USED], limits[MEMORY], limits[EXACT] = cost, latency_ms, used, memory, exact
    return limits


@kernel
def min_suffixes(choices: FloatArray, counts: IntArray, price: float) -> FloatArray:
    """`[s, d]`: the least that stages s and later together can spend of dimension d; in column PRICED of `cost + price·latency`."""
    stages = counts.shape[0]
    least = np.zeros((stages + 1, 5))
    for s in range(stages - 1, -1, -1):
        for d in range(4):
            best = np.inf
            for i in range(counts[s]):
                best = min(best, choices[s, i, d])
            least[s, d] = least[s + 1, d] + best
        best = np.inf
        for i in range(counts[s]):
            best = min(best, choices[s, i, COST] + price * choices[s, i, LATENCY])
        least[s, PRICED] = least[s + 1, PRICED] + best
    return least


@flat_kernel
def _priced(choices: FloatArray, counts: IntArray, price: float, spent: FloatArray) -> float:
    """Σ of each stage's least `cost + price·latency`; writes what those choices spend of each dimension."""
    total = 0.0
    for d in range(4):
        spent[d] = 0.0
    for s in range(counts.shape[0]):
        best, least = 0, np.inf
        for i in range(counts[s]):
            value = choices[s, i, COST] + price * choices[s, i, LATENCY]
            if value < least:
                best, least = i, value
        total += least
        for d in range(4):
            spent[d] += choices[s, best, d]
    return total


@flat_kernel
def _inside(spent: FloatArray, limits: FloatArray) -> bool:
    return bool(spent[LATENCY] <= limits[LATENCY] and spent[USED] <= limits[USED] and spent[MEMORY] <= limits[MEMORY])


@kernel
def relax(choices: FloatArray, counts: IntArray, limits: FloatArray) -> tuple[float, float]:
    """(price of a millisecond, cost of a feasible plan) from the Lagrangian relaxation of the SLO; infinite cost: it met none."""
    spent = np.empty(4)
    _priced(choices, counts, 0.0, spent)
    bound = spent[COST] if _inside(spent, limits) else np.inf
    if spent[LATENCY] <= limits[LATENCY]:
        return 0.0, bound
    low, high = 0.0, 1.0
    for step in range(60):
        middle = high if low == 0.0 and step < 40 else (low + high) / 2
        _priced(choices, counts, middle, spent)
        if spent[LATENCY] <= limits[LATENCY]:
            if _inside(spent, limits):
                bound = min(bound, spent[COST])
            if low == 0.0:
                low = middle / 4 if step > 0 else 1e-12
            high = middle
        elif middle == high:
            high *= 4.0
        else:
            low = middle
        if low > 0.0 and high - low < 1e-3 * high:
            break
    return high, bound


@kernel
def _extend_labels(
    labels: FloatArray, choices: FloatArray, count: int, least: FloatArray, limits: FloatArray, price: float
) -> tuple[FloatArray, IntArray]:
    """Every label with every choice of the next stage, without those that are dominated or cannot be completed inside the limits."""
    size = labels.shape[0]
    grown = np.empty((size * count, 4))
    origin = np.empty((size * count, 2), dtype=np.int64)
    kept = int(np.int64(0))
    for i in range(size):
        for j in range(count):
            cost, latency = labels[i, COST] + choices[j, COST], labels[i, LATENCY] + choices[j, LATENCY]
            used, memory = labels[i, USED] + choices[j, USED], labels[i, MEMORY] + choices[j, MEMORY]
            if latency + least[LATENCY] > limits[LATENCY] + LATENCY_TOLERANCE_MS:
                continue
            if cost + least[COST] > limits[COST] or cost + price * latency + least[PRICED] > limits[COST] + price * limits[LATENCY]:
                continue
            if used + least[USED] > limits[USED] or memory + least[MEMORY] > limits[MEMORY]:
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
def all_labels(choices: FloatArray, counts: IntArray, limits: FloatArray, within: float) -> tuple[FloatArray, IntArray]:
    """The frontier's labels that cost at most `within` times a good plan: (float64[m, 4] by cost, chosen int64[m, stages]).

    `choices[s, :counts[s]]` holds (cost, latency ms, use, memory) rows, `limits` their upper bounds over the chain. `within` infinite:
    the whole frontier. Labels that no completion brings under the bound are dropped (a Lagrangian lower bound).
    """
    stages = counts.shape[0]
    bounds, price = limits_of(limits[COST], limits[LATENCY], limits[USED], limits[MEMORY], limits[EXACT]), 0.0
    if within < np.inf:
        price, good = relax(choices, counts, limits)
        bounds[COST] = min(limits[COST], good * within)
    bounds[COST] += COST_TOLERANCE * (1.0 + abs(bounds[COST])) if bounds[COST] < np.inf else 0.0
    least = min_suffixes(choices, counts, price)
    labels = np.zeros((1, 4))
    chosen = np.zeros((1, stages), dtype=np.int64)
    for s in range(stages):
        labels, origin = _extend_labels(labels, choices[s], counts[s], least[s + 1], bounds, price)
        picks = np.empty((labels.shape[0], stages), dtype=np.int64)
        for i in range(labels.shape[0]):
            for before in range(s):
                picks[i, before] = chosen[origin[i, 0], before]
            picks[i, s] = origin[i, 1]
        chosen = picks
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
