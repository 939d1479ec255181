"""Percentiles of cumulative histograms."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Callable, Sequence

from themis_triton.core.observation import LatencyHistogram


def difference(newer: LatencyHistogram, older: LatencyHistogram) -> LatencyHistogram:
    """Counts between two readings; a histogram that restarted or changed its bounds counts as new."""
    if newer.bounds_ms != older.bounds_ms or any(map(operator.lt, newer.counts, older.counts)):
        return newer
    return LatencyHistogram(newer.bounds_ms, tuple(map(operator.sub, newer.counts, older.counts)))


def percentiles_between(newer: LatencyHistogram, older: LatencyHistogram | None, percents: Sequence[float]) -> tuple[float | None, ...]:
    """Percentiles of the `difference` of two readings in ms, interpolated within their bucket; None without counts.

    Beyond the last finite bound, that bound is the answer (a lower limit). `older` None: those of one histogram.
    """
    bounds, counts = newer.bounds_ms, newer.counts
    if older is None or older.bounds_ms != bounds or any(map(operator.lt, counts, older.counts)):
        count_of: Callable[[int], float] = counts.__getitem__
    else:
        before = older.counts

        def count_of(index: int) -> float:
            return counts[index] - before[index]

    return tuple([_percentile(bounds, count_of, percent) for percent in percents])


def _percentile(bounds: Sequence[float], count_of: Callable[[int], float], percent: float) -> float | None:
    """`count_of`: how many took at most as long as a bound."""
    total = count_of(len(bounds) - 1) if bounds else 0.0
    if total <= 0:
        return None
    rank = total * percent / 100.0
    index = bisect_left(range(len(bounds)), rank, key=count_of)
    if math.isinf(bounds[index]):
        return bounds[index - 1] if index else 0.0
    below_count, below_ms = (count_of(index - 1), bounds[index - 1]) if index else (0.0, 0.0)
    inside = count_of(index) - below_count
    return below_ms + (bounds[index] - below_ms) * ((rank - below_count) / inside if inside > 0 else 1.0)


def count_below(histogram: LatencyHistogram, limit_ms: float) -> float:
    """How many requests took at most so long, interpolated within its bucket; those beyond the last finite bound took longer."""
    bounds, counts = histogram.bounds_ms, histogram.counts
    index = bisect_left(bounds, limit_ms)
    if index == len(bounds):
        return counts[-1]
    below_count, below_ms = (counts[index - 1], bounds[index - 1]) if index else (0.0, 0.0)
    if math.isinf(bounds[index]):
        return below_count
    return below_count + (counts[index] - below_count) * (limit_ms - below_ms) / (bounds[index] - below_ms)
