"""Windows of the Twitter trace as a forecast meets them: Poisson counts of the last minute, true rates of what comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from common import recorded_trace

from themis_triton.forecast.base import HISTORY_S
from themis_triton.load.twitter import PAPER_TRACE_FILE

FloatArray = npt.NDArray[np.float64]

DAY_S = 86_400


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """`counts` (windows, 60) are arrivals, newest last; `rates_rps` (windows, seconds) the true rates of the seconds after them."""

    counts: FloatArray
    rates_rps: FloatArray

    def largest(self, horizon_s: int) -> FloatArray:
        """The largest one-second mean rate of each horizon."""
        found: FloatArray = self.rates_rps[:, :horizon_s].max(axis=1)
        return found


def rates_of_days(first: int, last: int) -> FloatArray:
    """Arrivals a second of the days (from 1, the last one included)."""
    with np.load(recorded_trace(PAPER_TRACE_FILE)) as trace:
        return np.asarray(trace["rps"][(first - 1) * DAY_S : last * DAY_S], dtype=np.float64)


def whole_moments(rates: FloatArray, ahead_s: int) -> npt.NDArray[np.int64]:
    """The seconds with a minute before and `ahead_s` after them in which the trace has no hole: no second of nothing."""
    holes = np.concatenate(([0], np.cumsum(rates == 0.0)))
    moments = np.arange(HISTORY_S, len(rates) - ahead_s)
    whole: npt.NDArray[np.int64] = moments[holes[moments + ahead_s] == holes[moments - HISTORY_S]]
    return whole


@dataclass(frozen=True, slots=True)
class Kind:
    """So many windows, each at a scale of its own: rates over a divisor (log-uniform), after a moving mean where it is over 1 s."""

    windows: int
    divisors: tuple[float, float]
    mean_s: int = 1


def sample(rates: FloatArray, kind: Kind, ahead_s: int, seed: int) -> Windows:
    """Windows drawn at random; counts are Poisson around the rates."""
    random = np.random.default_rng(seed)
    moments = random.choice(whole_moments(rates, ahead_s), kind.windows, replace=False)
    divisor = np.exp(random.uniform(math.log(kind.divisors[0]), math.log(kind.divisors[1]), kind.windows))[:, None]
    true = np.convolve(rates, np.full(kind.mean_s, 1.0 / kind.mean_s), mode="same")
    counts = random.poisson(true[moments[:, None] + np.arange(-HISTORY_S, 0)] / divisor)
    return Windows(counts.astype(np.float64), true[moments[:, None] + np.arange(ahead_s)] / divisor)


def joined(parts: Sequence[Windows]) -> Windows:
    """All windows of the parts, in their order."""
    return Windows(np.concatenate([p.counts for p in parts]), np.concatenate([p.rates_rps for p in parts]))


def in_order(counts: FloatArray, moments: npt.NDArray[np.int64], chunk: int = 20_000) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray]]:
    """The history of each moment, in chunks that fit into memory."""
    for start in range(0, len(moments), chunk):
        part = moments[start : start + chunk]
        yield part, counts[part[:, None] + np.arange(-HISTORY_S, 0)]
