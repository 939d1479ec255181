"""Interpolated totals and rates of counters over their readings, for all columns of a table in one call."""

from __future__ import annotations

from themis_triton.jit import FLOATS, FLOATS_2D, FLOATS_3D, INTEGER, REAL, Entry, Group, flat_kernel
from themis_triton.solver.surface import FloatArray


@flat_kernel
def _readings_until(times_s: FloatArray, time_s: float) -> int:
    """How many readings are not after a time."""
    low, high = 0, times_s.size
    while low < high:
        middle = (low + high) // 2
        if times_s[middle] <= time_s:
            low = middle + 1
        else:
            high = middle
    return low


@flat_kernel
def _share(times_s: FloatArray, index: int, time_s: float) -> float:
    """The share of the way from the reading before `index` to it; 0 at the ends, which hold beyond them."""
    if not 0 < index < times_s.size:
        return 0.0
    share: float = (time_s - times_s[index - 1]) / (times_s[index] - times_s[index - 1])
    return share


@flat_kernel
def _total(totals: FloatArray, index: int, share: float) -> float:
    """The total `share` of the way from the reading before `index` to it."""
    total: float = totals[max(0, index - 1)]
    if share != 0.0:
        total += share * (totals[index] - total)
    return total


@flat_kernel
def increases(times_s: FloatArray, totals: FloatArray, start_s: float, end_s: float, out: FloatArray) -> None:
    """Growth of each total [kind, column, reading] between two times, into `out` [column, kind]."""
    first, last = _readings_until(times_s, start_s), _readings_until(times_s, end_s)
    to_start, to_end = _share(times_s, first, start_s), _share(times_s, last, end_s)
    for kind in range(totals.shape[0]):
        for column in range(totals.shape[1]):
            each = totals[kind, column]
            out[column, kind] = _total(each, last, to_end) - _total(each, first, to_start)


@flat_kernel
def rates(times_s: FloatArray, totals: FloatArray, kind: int, window_s: float, lag_s: float, out: FloatArray) -> None:
    """Mean rates of the totals of a kind over consecutive windows, into `out` [window, column].

    The newest window comes first and ends `lag_s` before the last reading; the first reading cuts windows off.
    """
    for window in range(out.shape[0]):
        end_s = times_s[-1] - lag_s - window * window_s
        start_s = max(end_s - window_s, times_s[0])
        if end_s <= start_s:
            out[window] = 0.0
            continue
        first, last = _readings_until(times_s, start_s), _readings_until(times_s, end_s)
        to_start, to_end = _share(times_s, first, start_s), _share(times_s, last, end_s)
        for column in range(totals.shape[1]):
            each = totals[kind, column]
            out[window, column] = (_total(each, last, to_end) - _total(each, first, to_start)) / (end_s - start_s)


ENTRIES = (
    Entry(Group.TICK, increases, (FLOATS, FLOATS_3D, REAL, REAL, FLOATS_2D)),
    Entry(Group.TICK, rates, (FLOATS, FLOATS_3D, INTEGER, REAL, REAL, FLOATS_2D)),
)
