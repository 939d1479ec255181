"""Percentiles of cumulative histograms."""

from __future__ import annotations

import math
import operator
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from themis_triton.core.observation import LatencyHistogram


def difference(newer: LatencyHistogram, older: LatencyHistogram) -> LatencyHistogram:
    """Counts between two readings; a histogram that restarted or changed its bounds counts as new."""
    if newer.bounds_ms != older.bounds_ms or any(map(operator.lt, newer.counts, older.counts)):
        return newer
    return LatencyHistogram(newer.bounds_ms, tuple(map(operator.sub, newer.counts, older.counts)))


def differences(readings: Sequence[tuple[LatencyHistogram, LatencyHistogram]]) -> list[LatencyHistogram]:
    """`difference` of many (newer, older) readings; those with one set of bounds in one pass."""
    if len({each.bounds_ms for both in readings for each in both}) != 1:
        return [difference(newer, older) for newer, older in readings]
    counts = np.array([each.counts for both in readings for each in both]).reshape(len(readings), 2, -1)
    newer, older = counts[:, 0], counts[:, 1]
    restarted = (newer < older).any(axis=1, keepdims=True)
    rows = np.where(restarted, newer, newer - older).tolist()
    return [LatencyHistogram(both[0].bounds_ms, tuple(row)) for both, row in zip(readings, rows, strict=True)]


def percentile(histogram: LatencyHistogram, percent: float) -> float | None:
    """The percentile in ms, interpolated within its bucket; None without counts.

    Beyond the last finite bound, that bound is the answer (a lower limit).
    """
    counts, bounds = histogram.counts, histogram.bounds_ms
    total = counts[-1] if counts else 0.0
    if total <= 0:
        return None
    rank = total * percent / 100.0
    index = bisect_left(counts, rank)
    if math.isinf(bounds[index]):
        return bounds[index - 1] if index else 0.0
    below_count, below_ms = (counts[index - 1], bounds[index - 1]) if index else (0.0, 0.0)
    inside = counts[index] - below_count
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
