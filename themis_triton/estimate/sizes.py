"""What requests are to instances: how many rows of a batch each has, and how many a response cache answers."""

from __future__ import annotations

import math

from themis_triton.core.estimate import RequestSize
from themis_triton.estimate.served import Served

FEWEST = 5.0
STEP = 0.1
CHANCE = 1.5
"""Rows of requests that differ have a standard deviation of about their mean: so many of those of a window's mean are chance."""
LEAST_EXECUTED = 0.05
"""A cache may be emptied at any time, and that of a new server is empty: at least this share counts as executed."""


def measured_size(used: RequestSize, done: Served) -> RequestSize:
    """The size that plans use after a window: as before, or the measured one, to two digits, where it differs by more than chance."""
    succeeded, executed = done.succeeded, done.executed
    if succeeded < FEWEST:
        return used
    measured = max(1.0, done.inferences / executed) if executed >= FEWEST else used.rows  # some backends count no rows
    rows = _changed(used.rows, measured, max(executed, FEWEST), 1.0)
    share = min(1.0, max(LEAST_EXECUTED, executed / succeeded))
    return RequestSize(rows, _changed(used.executed, share, succeeded, math.sqrt((1.0 - share) / share)))


def _changed(used: float, measured: float, requests: float, variation: float) -> float:
    """`variation`: the standard deviation of one request, over the mean."""
    if abs(measured - used) <= used * (STEP + CHANCE * variation / math.sqrt(requests)):
        return used
    return float(f"{measured:.2g}")
