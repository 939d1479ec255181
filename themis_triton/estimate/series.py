"""A cumulative counter over time, safe against restarts, as an immutable value."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import pairwise

from themis_triton.estimate.axis import NO_TIMES, Axes, TimeAxis


@dataclass(frozen=True, slots=True)
class CounterSeries:
    """Totals at ascending times (s). A counter that restarts at zero continues here.

    `last_raw` is the counter as last read, or None before the first reading.
    """

    times_s: TimeAxis = NO_TIMES
    totals: tuple[float, ...] = ()
    last_raw: float | None = None

    def append(self, at_s: float, raw: float, keep_s: float, axes: Axes | None = None) -> CounterSeries:
        """The series with one more reading; readings older than `keep_s` are dropped, a reading from the past is ignored.

        `axes`: those of the tick, for series that are read together.
        """
        if self.last_raw is not None and at_s <= self.times_s[-1]:
            return self
        first, times_s = (axes or Axes()).append(self.times_s, at_s, keep_s)
        if self.last_raw is None:
            return CounterSeries(times_s, (0.0,), raw)
        increment = raw - self.last_raw if raw >= self.last_raw else raw
        return CounterSeries(times_s, (*self.totals[first:], self.totals[-1] + increment), raw)

    def at(self, time_s: float) -> float:
        """Total at a time, interpolated; the ends hold beyond them. Zero for an empty series."""
        if not self.times_s:
            return 0.0
        index = bisect_right(self.times_s, time_s)
        if index == 0:
            return self.totals[0]
        if index == len(self.times_s):
            return self.totals[-1]
        before, after = self.times_s[index - 1], self.times_s[index]
        share = (time_s - before) / (after - before)
        return self.totals[index - 1] + share * (self.totals[index] - self.totals[index - 1])

    def increase(self, start_s: float, end_s: float) -> float:
        """Growth of the total between two times."""
        return self.at(end_s) - self.at(start_s)

    def rate(self, window_s: float, lag_s: float = 0.0) -> float:
        """Mean rate (1/s) over the window that ended `lag_s` before the last reading; a shorter history shortens the window."""
        return self._rates(window_s, 1, lag_s)[0]

    def newest_rate(self, window_s: float) -> float:
        """Mean rate (1/s) over the window; after a longer rest, which the first arrival ends, all new ones lie in the window."""
        if len(self.times_s) < 2:
            return 0.0
        rested = self.times_s[-1] - self.times_s[-2] > window_s
        return (self.totals[-1] - self.totals[-2]) / window_s if rested else self.rate(window_s)

    def peak_rate(self, window_s: float, over_s: float) -> float:
        """Largest mean rate (1/s) of the consecutive windows of `window_s` in the last `over_s`, the newest window first."""
        if len(self.times_s) < 2:
            return 0.0
        covered = min(over_s, self.times_s[-1] - self.times_s[0])
        windows = max(1, int(covered / window_s + 1e-9))
        return max(self._rates(window_s, windows))

    def _rates(self, window_s: float, windows: int, lag_s: float = 0.0) -> list[float]:
        """The mean rate of each of so many consecutive windows, the newest first."""
        totals = self.totals
        if not totals or totals[0] == totals[-1]:
            return [0.0] * windows  # the usual case where there are many models
        return [
            (totals[d] + to_end * (totals[e] - totals[d]) - (totals[a] + to_start * (totals[b] - totals[a]))) / duration_s
            for a, b, to_start, d, e, to_end, duration_s in self.times_s.windows(window_s, windows, lag_s)
        ]

    def per_second(self, seconds: int) -> tuple[float, ...]:
        """Counts of each of the last seconds before the last reading, newest last; as many whole seconds as are covered."""
        covered = min(seconds, int(self.span_s + 1e-9))
        totals = [self.at(self.times_s[-1] - lag_s) for lag_s in range(covered, -1, -1)] if covered else []
        return tuple(after - before for before, after in pairwise(totals))

    def growth(self, half_window_s: float) -> float:
        """Slope of the rate (1/s per s): the last half window against the one before it; zero while history is short."""
        if len(self.times_s) < 2 or self.times_s[-1] - self.times_s[0] < 2 * half_window_s:
            return 0.0
        return (self.rate(half_window_s) - self.rate(half_window_s, half_window_s)) / half_window_s

    def dispersion(self, window_s: float, over_s: float) -> float:
        """Index of dispersion of the counts per window, from successive differences so that a trend does not count.

        `Σ (x_i − x_(i−1))² / (2 (m − 1) · mean)`; 1 for a Poisson stream, and 1 where there are too few counts.
        """
        if not self.times_s:
            return 1.0
        windows = int(min(over_s, self.times_s[-1] - self.times_s[0]) / window_s)
        if not self.rate(windows * window_s):
            return 1.0
        counts = [rate * window_s for rate in self._rates(window_s, windows)]
        mean = sum(counts) / windows if windows else 0.0
        if windows < 4 or mean <= 0:
            return 1.0
        squares = sum((a - b) ** 2 for a, b in pairwise(counts))
        return squares / (2 * (windows - 1) * mean)

    @property
    def span_s(self) -> float:
        """Seconds of history."""
        return self.times_s[-1] - self.times_s[0] if self.times_s else 0.0


EMPTY = CounterSeries()
