"""The largest rate that a configuration carries, as a search that both placements share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from themis_triton.jit import inlined
from themis_triton.solver.stage_kernels import Chain, set_rate
from themis_triton.solver.surface import IntArray

NO_GUESS = -1
STEP_FACTOR = 4


@inlined
def largest_rate(
    chain: Chain, fits: Callable[[Chain, int, bool, IntArray], bool], servers: int, flag: bool, max_rps: int, memo: IntArray
) -> int:
    """The largest whole rate up to `max_rps` at which `fits` holds; −1 when it does not even hold at rate 0.

    Waits that fall with the rate make this not monotone: whole intervals are ruled out, upper halves first. `memo`: see `fits`.
    """
    lows, highs, result = np.zeros(128, dtype=np.int64), np.zeros(128, dtype=np.int64), -1
    depth, at_high = 2, False
    lows[1], highs[1] = 1, max_rps  # rate 0 lies below it and comes last: without arrivals no batch is gathered
    while depth > 0 and result < 0:
        low, high = lows[depth - 1], highs[depth - 1]
        set_rate(chain, float(high if at_high else low), float(high))
        fitting = high >= low and fits(chain, servers, flag, memo)
        if fitting and (at_high or low == high):
            result = high
        elif fitting:
            at_high = True
        else:
            depth -= 1
            if at_high:
                middle = (low + high - 1) // 2
                lows[depth], highs[depth] = low, middle
                lows[depth + 1], highs[depth + 1] = middle + 1, high - 1
                depth += 2
            at_high = False
    return result


@inlined
def largest_slower_rate(
    chain: Chain,
    fits: Callable[[Chain, int, bool, IntArray], bool],
    servers: int,
    flag: bool,
    max_rps: int,
    guess: int,
    memo: IntArray,
) -> int:
    """The same where no wait falls with the rate, so that halving finds it; from a `guess`, if it is not NO_GUESS, in growing steps."""
    carried, missed, step = -1, max_rps + 1, 1
    rate = max_rps // 2 if guess == NO_GUESS else min(guess, max_rps)
    while missed - carried > 1:
        set_rate(chain, float(rate), float(rate))
        if fits(chain, servers, flag, memo):
            carried = rate
        else:
            missed = rate
        rate = (carried + missed) // 2
        if guess != NO_GUESS and missed > max_rps:
            rate = min(carried + step, max_rps)
        elif guess != NO_GUESS and carried < 0:
            rate = max(missed - step, 0)
        step *= STEP_FACTOR
    return carried
