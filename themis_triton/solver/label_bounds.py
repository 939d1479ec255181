"""Lower bounds of what partial plans still need, from the Lagrangian relaxation of the SLO."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import flat_kernel, kernel
from themis_triton.solver.dominance import COST, EXACT, LATENCY, MEMORY, PRICED, USED
from themis_triton.solver.join_kernels import JOIN_LEFT, JOIN_PARALLEL, JOIN_RIGHT, graph_ms, joined_ms
from themis_triton.solver.surface import FloatArray, IntArray


@kernel
def limits_of(cost: float, latency_ms: float, used: float, memory: float, exact: float) -> FloatArray:
    """Upper bounds in the order of a row's columns, then `exact` (see EXACT)."""
    limits = np.empty(5)
    limits[COST], limits[LATENCY], limits[USED], limits[MEMORY], limits[EXACT] = cost, latency_ms, used, memory, exact
    return limits


@kernel
def least_elsewhere(choices: FloatArray, counts: IntArray, ints: IntArray, weights: FloatArray, price: float) -> FloatArray:
    """`[node, d]`: the least that the stages outside of a node can spend of dimension d, or of latency on the node's path.

    Column PRICED: the least of their `cost + price·weight·latency`.
    """
    stages = counts.shape[0]
    least, elsewhere = np.zeros((2 * stages - 1, 5)), np.zeros((2 * stages - 1, 5))
    for s in range(stages):
        for d in range(5):
            best = np.inf
            for i in range(counts[s]):
                spent = choices[s, i, d] if d < PRICED else choices[s, i, COST] + price * weights[s] * choices[s, i, LATENCY]
                best = min(best, spent)
            least[s, d] = best
    for k in range(stages - 1):
        left, right = ints[k, JOIN_LEFT], ints[k, JOIN_RIGHT]
        for d in range(5):
            parallel = ints[k, JOIN_PARALLEL] if d == LATENCY else 0
            least[stages + k, d] = joined_ms(least[left, d], least[right, d], parallel)
    for k in range(stages - 2, -1, -1):
        left, right = ints[k, JOIN_LEFT], ints[k, JOIN_RIGHT]
        for d in range(5):
            beside = 0.0 if d == LATENCY and ints[k, JOIN_PARALLEL] else 1.0
            elsewhere[left, d] = elsewhere[stages + k, d] + (least[right, d] if beside > 0.0 else 0.0)
            elsewhere[right, d] = elsewhere[stages + k, d] + (least[left, d] if beside > 0.0 else 0.0)
    return elsewhere


@flat_kernel
def _priced(
    choices: FloatArray, counts: IntArray, ints: IntArray, weights: FloatArray, price: float, spent: FloatArray, nodes_ms: FloatArray
) -> None:
    """Write what each stage's choice of the least `cost + price·weight·latency` spends of each dimension, in the whole graph."""
    for d in range(4):
        spent[d] = 0.0
    for s in range(counts.shape[0]):
        best, least = 0, np.inf
        for i in range(counts[s]):
            value = choices[s, i, COST] + price * weights[s] * choices[s, i, LATENCY]
            if value < least:
                best, least = i, value
        for d in range(4):
            spent[d] += choices[s, best, d]
        nodes_ms[s] = choices[s, best, LATENCY]
    spent[LATENCY] = graph_ms(ints, nodes_ms)


@flat_kernel
def _inside(spent: FloatArray, limits: FloatArray) -> bool:
    return bool(spent[LATENCY] <= limits[LATENCY] and spent[USED] <= limits[USED] and spent[MEMORY] <= limits[MEMORY])


@kernel
def relax(choices: FloatArray, counts: IntArray, ints: IntArray, weights: FloatArray, limits: FloatArray) -> tuple[float, float]:
    """(price of a millisecond, cost of a feasible plan) from the Lagrangian relaxation of the SLO; infinite cost: it met none."""
    spent, nodes_ms = np.empty(4), np.empty(2 * counts.shape[0] - 1)
    low = 0.0
    _priced(choices, counts, ints, weights, low, spent, nodes_ms)
    bound = spent[COST] if _inside(spent, limits) else np.inf
    if spent[LATENCY] <= limits[LATENCY]:
        return 0.0, bound
    high = 1.0
    for step in range(60):
        middle = high if low == 0.0 and step < 40 else (low + high) / 2
        _priced(choices, counts, ints, weights, middle, spent, nodes_ms)
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
