"""The kernel that divides slots among pipelines."""

from __future__ import annotations

import numpy as np

from themis_triton.jit import kernel
from themis_triton.solver.surface import FloatArray, IntArray


@kernel
def split_slots(loss: FloatArray, cost: FloatArray) -> IntArray:
    """Slots of each pipeline, int64[P]: least Σ loss, then Σ cost, then slots; `loss`, `cost` float64[P, D + 1]. An exact DP."""
    members, width = loss.shape
    best_loss, best_cost = np.zeros((members + 1, width)), np.zeros((members + 1, width))
    take = np.zeros((members, width), dtype=np.int64)
    for p in range(members):
        for d in range(width):
            best_loss[p + 1, d] = np.inf
            for n in range(d + 1):
                lost, paid = best_loss[p, d - n] + loss[p, n], best_cost[p, d - n] + cost[p, n]
                less = lost < best_loss[p + 1, d] - 1e-9
                same = lost <= best_loss[p + 1, d] + 1e-9
                if less or (same and paid < best_cost[p + 1, d] - 1e-9):
                    best_loss[p + 1, d], best_cost[p + 1, d], take[p, d] = lost, paid, n
    split = np.zeros(members, dtype=np.int64)
    left = width - 1
    for p in range(members - 1, -1, -1):
        split[p] = take[p, left]
        left -= split[p]
    return split
