"""Forecasts that learn nothing: the present goes on, or its trend does."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from themis_triton.forecast.base import TREND_S, FloatArray

PEAK_S = 5


def recent_peak(counts: FloatArray, horizon_s: float, quantile: float) -> FloatArray:  # noqa: ARG001 - the protocol's parameters
    """The largest of the last five seconds, whatever the horizon and the quantile."""
    peak: FloatArray = counts[:, -PEAK_S:].max(axis=1)
    return peak


def trend(counts: FloatArray, horizon_s: float, quantile: float) -> FloatArray:
    """The mean of the last five seconds and its growth over the five before, less one standard error, extended over the horizon.

    On top stands the quantile of a Poisson second, as a normal. Needs ten seconds; a falling rate counts as a steady one.
    """
    newer = counts[:, -TREND_S:].mean(axis=1)
    older = counts[:, -2 * TREND_S : -TREND_S].mean(axis=1)
    error = np.sqrt((newer + older) / TREND_S)
    slope = np.maximum(newer - older - error, 0.0) / TREND_S
    # The mean of the newer seconds lies half of them in the past.
    ahead: FloatArray = newer + slope * (horizon_s + TREND_S / 2.0) + NormalDist().inv_cdf(quantile) * np.sqrt(newer)
    return ahead
