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


@flat_kernel
def append(totals: FloatArray, before: FloatArray, raw: FloatArray, first: int, out: FloatArray) -> None:
    """The totals from the reading `first` on and after them those of one more reading, into `out` [kind, column, reading].

    `before`, `raw`: the counters of the last reading and of the new one [kind, column].
    """
    last = totals.shape[2] - 1
    for kind in range(totals.shape[0]):
        for column in range(totals.shape[1]):
            for reading in range(first, last + 1):
                out[kind, column, reading - first] = totals[kind, column, reading]
            now, then = raw[kind, column], before[kind, column]
            out[kind, column, last + 1 - first] = totals[kind, column, last] + (now - then if now >= then else now)


RATE, RECENT, STABLE, BURST, NEWEST, GROWTH, TREND, TREND_BASE, DISPERSION, OTHERS = range(10)
"""Rows of `demand_rates`; the last are the rates of the other kinds."""
FEWEST_WINDOWS = 4
"""With fewer, a dispersion is not told from chance."""


@flat_kernel
def demand_rates(
    times_s: FloatArray,
    totals: FloatArray,
    rate_s: float,
    stable_s: float,
    burst_s: float,
    newest_s: float,
    growth_s: float,
    trend_s: float,
    dispersion_s: float,
    dispersion_over_s: float,
    out: FloatArray,
    scratch: FloatArray,
) -> None:
    """What plans use of the totals' rates, over the windows of `RateWindows`, into `out` [row, column].

    `scratch` [3, column] is overwritten.
    """
    rates(times_s, totals, 0, rate_s, 0.0, out[RATE : RATE + 1])
    rates(times_s, totals, 0, 2.0 * rate_s, 0.0, out[RECENT : RECENT + 1])
    rates(times_s, totals, 0, stable_s, 0.0, out[STABLE : STABLE + 1])
    rates(times_s, totals, 0, trend_s, 0.0, out[TREND_BASE : TREND_BASE + 1])
    _peak_rates(times_s, totals, rate_s, burst_s, out[BURST], scratch)
    _newest_rates(times_s, totals, newest_s, out[NEWEST : NEWEST + 1])
    _growths(times_s, totals, growth_s, out[GROWTH], scratch)
    _growths(times_s, totals, trend_s, out[TREND], scratch)
    _dispersions(times_s, totals, dispersion_s, dispersion_over_s, out[DISPERSION], scratch)
    for kind in range(1, totals.shape[0]):
        row = OTHERS + kind - 1
        rates(times_s, totals, kind, rate_s, 0.0, out[row : row + 1])


@flat_kernel
def _peak_rates(times_s: FloatArray, totals: FloatArray, window_s: float, over_s: float, out: FloatArray, scratch: FloatArray) -> None:
    """The largest mean rates of the consecutive windows in the last `over_s`, the newest window first."""
    rates(times_s, totals, 0, window_s, 0.0, scratch[:1])
    for column in range(out.size):
        out[column] = scratch[0, column]
    for window in range(1, int(min(over_s, times_s[-1] - times_s[0]) / window_s + 1e-9)):
        rates(times_s, totals, 0, window_s, window * window_s, scratch[:1])
        for column in range(out.size):
            out[column] = max(out[column], scratch[0, column])


@flat_kernel
def _newest_rates(times_s: FloatArray, totals: FloatArray, window_s: float, out: FloatArray) -> None:
    """Mean rates over the window; after a longer rest, which the first arrival ends, all new ones lie in the window."""
    rates(times_s, totals, 0, window_s, 0.0, out)
    if times_s.size > 1 and times_s[-1] - times_s[-2] > window_s:
        for column in range(out.shape[1]):
            out[0, column] = (totals[0, column, -1] - totals[0, column, -2]) / window_s


@flat_kernel
def _growths(times_s: FloatArray, totals: FloatArray, half_window_s: float, out: FloatArray, scratch: FloatArray) -> None:
    """Slopes of the rates: the last half window against the one before it; zero while history is short."""
    if times_s[-1] - times_s[0] < 2 * half_window_s:
        out[:] = 0.0
        return
    rates(times_s, totals, 0, half_window_s, 0.0, scratch[:1])
    rates(times_s, totals, 0, half_window_s, half_window_s, scratch[1:2])
    for column in range(out.size):
        out[column] = (scratch[0, column] - scratch[1, column]) / half_window_s


@flat_kernel
def _dispersions(times_s: FloatArray, totals: FloatArray, window_s: float, over_s: float, out: FloatArray, scratch: FloatArray) -> None:
    """Indices of dispersion of the counts per window, from successive differences so that a trend does not count.

    `Σ (x_i − x_(i−1))² / (2 (m − 1) · mean)`; 1 for a Poisson stream, and 1 where there are too few counts.
    """
    windows = int(min(over_s, times_s[-1] - times_s[0]) / window_s)
    if windows < FEWEST_WINDOWS:
        out[:] = 1.0
        return
    counted, squares, before, now = scratch[0], out, scratch[1], scratch[2]
    counted[:] = 0.0
    squares[:] = 0.0
    for window in range(windows):
        rates(times_s, totals, 0, window_s, window * window_s, scratch[2:])
        for column in range(out.size):
            count = now[column] * window_s
            counted[column] += count
            if window > 0:
                squares[column] += (before[column] - count) ** 2
            before[column] = count
    for column in range(out.size):
        out[column] = squares[column] / (2 * (windows - 1) * (counted[column] / windows)) if counted[column] > 0.0 else 1.0


ENTRIES = (
    Entry(Group.TICK, append, (FLOATS_3D, FLOATS_2D, FLOATS_2D, INTEGER, FLOATS_3D)),
    Entry(Group.TICK, demand_rates, (FLOATS, FLOATS_3D, *(REAL,) * 8, FLOATS_2D, FLOATS_2D)),
    Entry(Group.TICK, increases, (FLOATS, FLOATS_3D, REAL, REAL, FLOATS_2D)),
    Entry(Group.TICK, rates, (FLOATS, FLOATS_3D, INTEGER, REAL, REAL, FLOATS_2D)),
)
