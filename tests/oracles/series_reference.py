"""One counter over time, in the plainest form: what a column of `CounterTable` must say."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass
class Series:
    """Totals at ascending times (s); a counter that restarts at zero continues."""

    times_s: list[float] = field(default_factory=list)
    totals: list[float] = field(default_factory=list)
    raw: float = 0.0

    def append(self, at_s: float, raw: float, keep_s: float) -> None:
        if self.times_s and at_s <= self.times_s[-1]:
            return
        if not self.times_s:
            self.totals.append(0.0)
        else:
            self.totals.append(self.totals[-1] + (raw - self.raw if raw >= self.raw else raw))
        self.times_s.append(at_s)
        self.raw = raw
        old = bisect_right(self.times_s, at_s - keep_s, 0, len(self.times_s) - 1)
        del self.times_s[:old], self.totals[:old]

    def at(self, time_s: float) -> float:
        index = bisect_right(self.times_s, time_s)
        if index in {0, len(self.times_s)}:
            return self.totals[max(0, index - 1)]
        before_s, after_s = self.times_s[index - 1], self.times_s[index]
        before, after = self.totals[index - 1], self.totals[index]
        return before + (time_s - before_s) / (after_s - before_s) * (after - before)

    def increase(self, start_s: float, end_s: float) -> float:
        return self.at(end_s) - self.at(start_s)

    def rate(self, window_s: float, lag_s: float = 0.0) -> float:
        end_s = self.times_s[-1] - lag_s
        start_s = max(end_s - window_s, self.times_s[0])
        return self.increase(start_s, end_s) / (end_s - start_s) if end_s > start_s else 0.0

    def peak_rate(self, window_s: float, over_s: float) -> float:
        windows = max(1, int(min(over_s, self.times_s[-1] - self.times_s[0]) / window_s + 1e-9))
        return max(self.rate(window_s, index * window_s) for index in range(windows))
