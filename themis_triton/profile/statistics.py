"""Percentiles of samples with confidence intervals; outliers are counted and included."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_FAR_OUT = 3.0
_LEAST_SPREAD = 0.01


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of one point's samples, in the samples' unit.

    `low` and `high` bound the percentile with 95 % confidence for any distribution; None if there are too few samples.
    `outliers` counts samples more than three interquartile ranges outside the quartiles; they stay in everything else.
    """

    samples: int
    mean: float
    median: float
    percentile: float
    low: float | None
    high: float | None
    outliers: int

    @property
    def relative_halfwidth(self) -> float:
        """Half the interval's width as a share of the percentile; infinite where the interval is open."""
        if self.low is None or self.high is None:
            return math.inf
        return (self.high - self.low) / 2.0 / self.percentile


def summarise(values: Sequence[float] | FloatArray, percent: float) -> Summary:
    """Summary of samples at a percentile (0 < percent < 100). ValueError of no samples."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if ordered.size == 0:
        raise ValueError("no samples to summarise")
    low, high = interval_ranks(ordered.size, percent / 100.0)
    rank = min(ordered.size, max(1, math.ceil(ordered.size * percent / 100.0)))
    return Summary(
        samples=int(ordered.size),
        mean=float(ordered.mean()),
        median=float(np.median(ordered)),
        percentile=float(ordered[rank - 1]),
        low=float(ordered[low - 1]) if low is not None else None,
        high=float(ordered[high - 1]) if high is not None else None,
        outliers=count_outliers(ordered),
    )


def count_outliers(values: FloatArray) -> int:
    """Samples beyond Tukey's outer fences; the spread counts as at least 1 % of the median, or any jitter would be an outlier."""
    first, median, third = np.percentile(values, [25, 50, 75])
    reach = _FAR_OUT * max(third - first, _LEAST_SPREAD * median)
    return int(np.count_nonzero((values < first - reach) | (values > third + reach)))


def interval_ranks(samples: int, share: float) -> tuple[int | None, int | None]:
    """Ranks (from 1) of the order statistics that bound the quantile `share` with 95 % confidence; None if there are too few samples.

    The number of samples below the quantile is binomial, so P(quantile < X_(r)) = P(Bin(n, share) < r) for any distribution.
    """
    tail = (1.0 - CONFIDENCE) / 2.0
    cumulative = np.cumsum(_binomial(samples, share))
    low = int(np.searchsorted(cumulative, tail, side="right"))
    high = int(np.searchsorted(cumulative, 1.0 - tail, side="left")) + 1
    return (low if low >= 1 else None), (high if high <= samples else None)


def samples_needed(share: float) -> int:
    """The minimum number of samples for which the quantile's interval is closed on both sides."""
    tail = (1.0 - CONFIDENCE) / 2.0
    return max(math.ceil(math.log(tail) / math.log(side)) for side in (share, 1.0 - share))


def _binomial(trials: int, share: float) -> FloatArray:
    """Probabilities of 0..trials successes."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1, dtype=np.float64)))])
    k = np.arange(trials + 1)
    exponent = logs[trials] - logs[k] - logs[trials - k] + k * math.log(share) + (trials - k) * math.log1p(-share)
    return np.asarray(np.exp(exponent), dtype=np.float64)
