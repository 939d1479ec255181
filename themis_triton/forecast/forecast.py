"""The entry point of the forecasts: one by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from themis_triton.core.policy import ForecastName
from themis_triton.forecast.base import HISTORY_S, QUANTILES, TREND_S, Forecast
from themis_triton.forecast.known import KnownArrivals
from themis_triton.forecast.learnt import LearntForecasts
from themis_triton.forecast.trend import recent_peak, trend
from themis_triton.forecast.weights import shipped_weights

NEEDED_S: Mapping[ForecastName, int] = {
    ForecastName.NONE: 1,
    ForecastName.LINEAR: 2 * TREND_S,
    ForecastName.CLASSIFIER: HISTORY_S,
    ForecastName.QUANTILE: HISTORY_S,
}


def able(name: ForecastName, seconds: int) -> ForecastName:
    """The forecast that so many seconds of history allow: the named one, else the linear one, else none."""
    return next((n for n in (name, ForecastName.LINEAR) if seconds >= NEEDED_S[n]), ForecastName.NONE)


class Forecaster:
    """Forecasts by their names. The weights are read when a learnt one is first used. `known`: a simulation's arrivals."""

    def __init__(self, known: KnownArrivals | None = None) -> None:
        self.known = known

    @cached_property
    def learnt(self) -> LearntForecasts:
        """The forecasts with the shipped weights."""
        return LearntForecasts(shipped_weights())

    def forecast(self, name: ForecastName) -> Forecast:
        """The forecast of that name."""
        match name:
            case ForecastName.NONE:
                return recent_peak
            case ForecastName.LINEAR:
                return trend
            case ForecastName.CLASSIFIER:
                return self.learnt.classifier
            case ForecastName.QUANTILE:
                return self.learnt.quantile

    def rate(self, name: ForecastName, counts: Sequence[float], horizon_s: float, quantile: float) -> float:
        """The largest one-second mean rate (requests/s) to expect in the next `horizon_s`, at an upper quantile.

        `counts` are the arrivals of the last seconds, newest last; with fewer than the forecast needs, `able` selects the one that
        applies. Nothing arrived, or no history: 0. ValueError for a horizon that is not positive or a quantile outside 0.5 to 0.99.
        """
        low, high = QUANTILES
        if not (horizon_s > 0 and low <= quantile <= high):
            raise ValueError(f"a forecast over {horizon_s} s at the quantile {quantile}: allowed are more than 0 s, and {low} to {high}")
        if not any(counts):
            return 0.0
        forecast = self.forecast(able(name, len(counts)))
        return float(forecast(np.asarray(counts, dtype=np.float64)[None, :], horizon_s, quantile)[0])
