"""What a forecast is."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

HISTORY_S = 60
TREND_S = 5
QUANTILES = (0.5, 0.99)


class Forecast(Protocol):
    """The largest one-second mean rate of the next `horizon_s` seconds, at an upper quantile; the same answer for the same input."""

    def __call__(self, counts: FloatArray, horizon_s: float, quantile: float) -> FloatArray:
        """Rates (requests/s), one a row of `counts`: arrivals in each of the last seconds, shape (windows, seconds), newest last."""
