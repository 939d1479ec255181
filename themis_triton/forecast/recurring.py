"""Sharp rises that recur in the same part of the hour: learnt from days of arrivals, with the evidence for them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from themis_triton.core.recurring import DAY_S, RecurringRise
from themis_triton.forecast.base import FloatArray

HOUR_S, PART_S = 3600, 15
PARTS, HOURS = HOUR_S // PART_S, DAY_S // HOUR_S
RISE_FACTOR, BASE_S, PEAK_S, WITHIN_S = 2.5, 30, 5, 30
"""A sharp rise: the mean of five seconds reaches this multiple of that of 30 s, which ended no more than 30 s before."""
SPAN_S = BASE_S + WITHIN_S + PEAK_S
"""The seconds that show whether there is a sharp rise."""
SIGNIFICANCE = 1e-4
"""Probability that rises at random times seem to recur in any part of the hour."""
MIN_CHANCE = 0.05
"""Room is kept where a rise comes at least this often."""
PRIOR_DAYS = 5.0
"""What any hour has shown in this part of it counts like so many days of the one hour."""
PEAK_QUANTILE = 0.9
JUMP_FACTOR, JUMP_QUANTILE = 1.5, 0.5
"""A jump: the mean of two seconds exceeds that of the two seconds before by this factor; half of the rises at a time jump no higher."""


@dataclass(frozen=True, slots=True)
class SeenRises:
    """The sharp rises that were seen: when they reached their height and what that was (requests/s); and the hours that were observed.

    `jump_rps`: what they reached within two seconds; 0: no jump. Times are whole seconds; hours are counted from the same time.
    """

    at_s: tuple[int, ...] = ()
    peak_rps: tuple[float, ...] = ()
    jump_rps: tuple[float, ...] = ()
    hours: frozenset[int] = frozenset()

    def with_counts(self, counts: FloatArray, start_s: int) -> SeenRises:
        """With those in the arrivals of each second from `start_s` on; NaN where nothing was observed.

        The last `SPAN_S` seconds come again at the beginning of the next call's.
        """
        rises = [rise for rise in _sharp_rises(counts, start_s) if not self.at_s or rise[0] > self.at_s[-1] + SPAN_S]
        seconds = np.bincount((start_s + np.flatnonzero(~np.isnan(counts))) // HOUR_S)
        observed = frozenset(np.flatnonzero(seconds >= HOUR_S // 2).tolist())
        return self._with(rises, self.hours | observed)

    def since(self, from_s: float) -> SeenRises:
        """Without what was seen before a time."""
        first = bisect_left(self.at_s, from_s)
        hours = frozenset(hour for hour in self.hours if hour * HOUR_S >= from_s)
        return SeenRises(self.at_s[first:], self.peak_rps[first:], self.jump_rps[first:], hours)

    def _with(self, rises: Sequence[tuple[int, float, float]], hours: frozenset[int]) -> SeenRises:
        at_s = (*self.at_s, *(at_s for at_s, _, _ in rises))
        peak_rps = (*self.peak_rps, *(peak_rps for _, peak_rps, _ in rises))
        return SeenRises(at_s, peak_rps, (*self.jump_rps, *(jump_rps for _, _, jump_rps in rises)), hours)


def recurring_rises(seen: SeenRises) -> tuple[RecurringRise, ...]:
    """The times of the day with recurring rises, in order; none where rises come at random times, or too little was seen."""
    at_s, peaks, jumps = np.array(seen.at_s, dtype=np.int64), np.array(seen.peak_rps), np.array(seen.jump_rps)
    days = np.bincount(np.array(sorted(seen.hours), dtype=np.int64) % HOURS, minlength=HOURS)
    found = []
    for first, last in _recurring_parts(at_s, len(seen.hours)):
        parts = at_s % HOUR_S // PART_S
        inside = (parts >= first) & (parts <= last)
        peak_rps, jump_rps = float(np.quantile(peaks[inside], PEAK_QUANTILE)), float(np.quantile(jumps[inside], JUMP_QUANTILE))
        hours = np.array([hour for hour in np.unique(at_s[inside] // HOUR_S).tolist() if hour in seen.hours], dtype=np.int64)
        hourly = hours.size / len(seen.hours)
        for hour in range(HOURS):
            seen_then = int((hours % HOURS == hour).sum())
            chance = (seen_then + PRIOR_DAYS * hourly) / (days[hour] + PRIOR_DAYS)
            if chance >= MIN_CHANCE:
                span = (hour * HOUR_S + first * PART_S, hour * HOUR_S + (last + 1) * PART_S)
                found.append(RecurringRise(*span, peak_rps, chance, seen_then, int(days[hour]), hours.size, len(seen.hours), jump_rps))
    return tuple(sorted(found, key=lambda rise: rise.from_s))


def _sharp_rises(counts: FloatArray, start_s: int) -> Iterator[tuple[int, float, float]]:
    """The rises, each once: when the first five seconds that show it begin, the largest mean of five seconds soon after, and the jump."""
    size = counts.size - SPAN_S
    if size <= 0:
        return
    sums = np.concatenate(([0.0], np.cumsum(np.nan_to_num(counts))))
    gaps = np.concatenate(([0], np.cumsum(np.isnan(counts))))
    base = (sums[BASE_S : BASE_S + size] - sums[:size]) / BASE_S
    means = (sums[PEAK_S:] - sums[:-PEAK_S]) / PEAK_S
    peak = means[BASE_S : BASE_S + size].copy()
    for later in range(1, WITHIN_S):
        np.maximum(peak, means[BASE_S + later :][:size], out=peak)
    whole = gaps[SPAN_S : SPAN_S + size] == gaps[:size]
    sharp = np.flatnonzero((peak >= RISE_FACTOR * np.maximum(base, 1.0)) & whole)
    for first in sharp[np.diff(sharp, prepend=-HOUR_S) > SPAN_S].tolist():
        jump_rps = _jump_rps(counts[first + BASE_S : first + WITHIN_S + SPAN_S])
        yield start_s + first + BASE_S + WITHIN_S - 1, float(peak[first : first + WITHIN_S].max()), jump_rps


def _jump_rps(counts: FloatArray) -> float:
    """The largest rate that is reached by a jump; 0 where there is none."""
    means = (counts[1:] + counts[:-1]) / 2.0
    return float(means[2:].max(initial=0.0, where=means[2:] > JUMP_FACTOR * means[:-2]))


def _recurring_parts(at_s: npt.NDArray[np.int64], hours: int) -> Iterator[tuple[int, int]]:
    """First and last of each run of parts of the hour that have more rises than chance explains, with the parts beside them.

    A run over the end of the hour is two.
    """
    seen = np.bincount(at_s % HOUR_S // PART_S, minlength=PARTS)
    rate = at_s.size / max(1, hours * PARTS)
    above = np.array([_tail(int(count), hours, rate) < SIGNIFICANCE / PARTS for count in seen])
    parts = above | np.roll(above, 1) | np.roll(above, -1)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], parts.astype(np.int64), [0]))))
    return ((int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True))


def _tail(count: int, trials: int, rate: float) -> float:
    """Probability of at least so many rises in as many hours, each with that rate."""
    if not 1 < count <= trials or rate >= 1.0:
        return 1.0
    ways = math.lgamma(trials + 1)
    logs = [
        ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(rate) + (trials - k) * math.log1p(-rate)
        for k in range(count, trials + 1)
    ]
    return math.fsum(map(math.exp, logs))
