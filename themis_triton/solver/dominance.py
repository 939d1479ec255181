"""Partial plans as rows (COST, LATENCY, USED, MEMORY), in the order of their cost, and those that no other one dominates."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.surface import FloatArray, IntArray

COST, LATENCY, USED, MEMORY, PRICED = 0, 1, 2, 3, 4
EXACT = 4  # of `limits`: above 0 where only labels of equal use compete


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
