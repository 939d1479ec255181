"""The counters of one model on one server over time, all on one time axis; safe against restarts, as an immutable value."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from operator import sub
from typing import NamedTuple

from themis_triton.core.observation import ModelCounters
from themis_triton.estimate.axis import NO_TIMES, Axes, TimeAxis


class Served(NamedTuple):
    """Totals, or their increase between two times. `ended`: all requests that ended; `failed`: those of them that the server failed."""

    ended: float = 0.0
    inferences: float = 0.0
    executions: float = 0.0
    queue_us: float = 0.0
    compute_us: float = 0.0
    failed: float = 0.0
    refused: float = 0.0

    @property
    def succeeded(self) -> float:
        """Requests that ended with an answer."""
        return self.ended - self.failed - self.refused


NOTHING = Served()


@dataclass(frozen=True, slots=True)
class ServedSeries:
    """Totals at ascending times (s). A counter that restarts at zero continues here. `last_raw`: the counters as last read."""

    times_s: TimeAxis = NO_TIMES
    totals: tuple[Served, ...] = ()
    last_raw: Served | None = None
    pending: float = 0.0

    def append(self, at_s: float, counters: ModelCounters, keep_s: float, axes: Axes | None = None) -> ServedSeries:
        """The series with one more reading; readings older than `keep_s` are dropped; a late reading updates only the gauge.

        `axes`: those of the tick, for series that are read together.
        """
        compute_us = counters.compute_input_us + counters.compute_infer_us + counters.compute_output_us
        ended = counters.success + counters.failure + counters.refused
        work = (counters.inferences, counters.executions, counters.queue_us, compute_us)
        raw = Served(ended, *work, counters.failure, counters.refused)
        if self.last_raw is not None and at_s <= self.times_s[-1]:
            return ServedSeries(self.times_s, self.totals, self.last_raw, counters.pending)
        first, times_s = (axes or Axes()).append(self.times_s, at_s, keep_s)
        if self.last_raw is None:
            return ServedSeries(times_s, (NOTHING,), raw, counters.pending)
        total = self.totals[-1]
        if raw != self.last_raw:
            columns = zip(total, self.last_raw, raw, strict=True)
            total = Served._make([total + (now - last if now >= last else now) for total, last, now in columns])
        return ServedSeries(times_s, (*self.totals[first:], total), raw, counters.pending)

    def at(self, time_s: float) -> Served:
        """Totals at a time, interpolated; the ends hold beyond them. Zero for an empty series."""
        return self._between(bisect_right(self.times_s, time_s), time_s) if self.times_s else NOTHING

    def _between(self, index: int, time_s: float) -> Served:
        """Totals at a time before the reading of that index and not before the one of the index below."""
        if index == 0 or index == len(self.times_s):
            return self.totals[min(index, len(self.times_s) - 1)]
        older, newer = self.totals[index - 1], self.totals[index]
        if older is newer:
            return older
        before, after = self.times_s[index - 1], self.times_s[index]
        share = (time_s - before) / (after - before)
        return Served._make([low + share * (high - low) for low, high in zip(older, newer, strict=True)])

    def increase(self, start_s: float, end_s: float) -> Served:
        """Growth of the totals between two times."""
        if not self.times_s:
            return NOTHING
        first = bisect_right(self.times_s, start_s)
        if self.totals[max(0, first - 1)] is self.totals[-1]:
            return NOTHING  # nothing has ended since, which is the usual case where there are many models
        return Served._make(map(sub, self.at(end_s), self._between(first, start_s)))

    def mean_busy(self, start_s: float, min_window_s: float) -> float | None:
        """Mean number of busy instances from a time to the last reading, by Little's law; None over a shorter time than the least."""
        if not self.times_s or self.times_s[-1] - max(start_s, self.times_s[0]) < min_window_s:
            return None
        start_s = max(start_s, self.times_s[0])
        work = self.increase(start_s, self.times_s[-1])
        # The counter charges a batch's time to each of its requests.
        batches = work.compute_us * work.executions / work.inferences if work.inferences else 0.0
        return batches / 1e6 / (self.times_s[-1] - start_s)

    def completion_rps(self, window_s: float) -> float:
        """Mean rate of requests that were answered over the window up to the last reading; a shorter history shortens the window."""
        if len(self.times_s) < 2:
            return 0.0
        end_s = self.times_s[-1]
        start_s = max(end_s - window_s, self.times_s[0])
        first = bisect_right(self.times_s, start_s)
        if self.totals[max(0, first - 1)] is self.totals[-1]:
            return 0.0
        return (self.totals[-1].succeeded - self._between(first, start_s).succeeded) / (end_s - start_s)
