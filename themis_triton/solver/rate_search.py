"""The largest rate that a configuration carries, as a search that both placements share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from themis_triton.jit import inlined
from themis_triton.solver.stage_kernels import Chain, set_rate
from themis_triton.solver.surface import IntArray


@inlined
def largest_rate(
    chain: Chain,
    fits: Callable[[Chain, int, bool, IntArray, IntArray], bool],
    servers: int,
    flag: bool,
    max_rps: int,
    counts: IntArray,
    batches: IntArray,
) -> int:
    """The largest whole rate up to `max_rps` at which `fits` holds; −1 when it does not even hold at rate 0.

    Waits that fall with the rate make this not monotone: whole intervals are ruled out, upper halves first.
    """
    lows, highs, depth, result = np.zeros(128, dtype=np.int64), np.zeros(128, dtype=np.int64), 1, -1
    lows[0], highs[0] = 1, max_rps  # rate 0 is checked alone: without arrivals no batch is gathered
    while depth > 0 and result < 0:
        depth -= 1
        low, high = lows[depth], highs[depth]
        set_rate(chain, float(low), float(high))
        if high < low or not fits(chain, servers, flag, counts, batches):
            continue
        set_rate(chain, float(high), float(high))
        if fits(chain, servers, flag, counts, batches):
            result = high
        elif low < high:
            middle = (low + high - 1) // 2
            lows[depth], highs[depth] = low, middle
            depth += 1
            if middle + 1 <= high - 1:
                lows[depth], highs[depth] = middle + 1, high - 1
                depth += 1
    if result < 0:
        set_rate(chain, 0.0, 0.0)
        if fits(chain, servers, flag, counts, batches):
            result = 0
    return result
