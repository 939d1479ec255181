"""The proxy's counters of all models over time, with their latency histograms, as an immutable value."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, repeat
from operator import attrgetter, itemgetter
from typing import NamedTuple

import numpy as np

from themis_triton.core.observation import LatencyHistogram, RouteReading
from themis_triton.estimate.counters import NO_COUNTERS, Counters, RateWindows
from themis_triton.estimate.latency import percentiles_between

ARRIVALS, FAILURES, REFUSED, REST_ARRIVALS = range(4)
# A forecast's minute, with a margin for ticks that are far apart.
KEEP_S = 65.0
LATENCY_WINDOW_S = 5.0
TAILS_A_TURN = 250
"""Of more models, the percentiles of about so many are computed at a reading, in turn."""
_TIME = itemgetter(0)
_COUNTED = attrgetter("arrivals", "failures", "refused", "rest_arrivals")

Histograms = tuple[tuple[float, LatencyHistogram], ...]
"""Latency histograms with their times, oldest first."""
Percentiles = tuple[float | None, ...]


class RouteRates(NamedTuple):
    """What plans use of a model's rates (1/s) at the proxy, in the order of `demand_rates`. `last_s`: the time of its last reading."""

    rate: float = 0.0
    recent: float = 0.0
    stable: float = 0.0
    burst: float = 0.0
    newest: float = 0.0
    growth: float = 0.0
    trend: float = 0.0
    trend_base: float = 0.0
    dispersion: float = 1.0
    failures: float = 0.0
    refused: float = 0.0
    rest: float = 0.0
    last_s: float = -math.inf


NOT_ROUTED = RouteRates()


@dataclass(frozen=True, slots=True)
class RoutedSeries:
    """The counters of all routes (kinds as above), and by model the latency histograms of the last seconds and the requests in flight.

    `tails_ms`: the median and the 99th percentile over the latency window that ends with the last reading, of models of which something
    ended in it; of more than `TAILS_A_TURN` models, as of one of the last readings. `turn`: counts readings.
    """

    counters: Counters = NO_COUNTERS
    histograms: Mapping[str, Histograms] = field(default_factory=dict)
    in_flight: Mapping[str, float] = field(default_factory=dict)
    tails_ms: Mapping[str, Percentiles] = field(default_factory=dict)
    turn: int = 0

    def append(self, readings: Sequence[RouteReading]) -> RoutedSeries:
        """With one more reading of each route."""
        counters = self.counters
        for at_s, together in groupby(readings, key=attrgetter("at_s")):
            routes = tuple(together)
            raw = np.array(list(zip(*map(_COUNTED, routes), strict=True)), dtype=np.float64)
            counters = counters.append(at_s, tuple(route.model for route in routes), raw, KEEP_S)
        histograms = {**self.histograms, **{route.model: _appended(self.histograms.get(route.model, ()), route) for route in readings}}
        in_flight = {**self.in_flight, **{route.model: route.in_flight for route in readings}}
        turns = -(-len(histograms) // TAILS_A_TURN)
        due = [model for number, model in enumerate(histograms) if (number + self.turn) % turns == 0] if turns > 1 else list(histograms)
        kept = {model: self.tails_ms[model] for model in self.tails_ms.keys() - set(due)} if turns > 1 else {}
        return RoutedSeries(counters, histograms, in_flight, kept | _tails_ms({model: histograms[model] for model in due}), self.turn + 1)

    def rates(self, windows: RateWindows) -> dict[str, RouteRates]:
        """The rates of each model; those without any reading are not there."""
        found = dict[str, RouteRates]()
        for table in self.counters.tables:
            columns = zip(*table.demand_rates(windows).tolist(), repeat(table.last_s), strict=False)
            found |= zip(table.names, map(RouteRates._make, columns), strict=True)
        return found

    def percentile_ms(self, model: str, percent: float) -> float | None:
        """A percentile of a model over the latency window that ends with the last reading; None where nothing ended in it."""
        ends = _window(self.histograms.get(model, ()))
        return None if ends is None else percentiles_between(*ends, (percent,))[0]

    def per_second(self, model: str, seconds: int) -> tuple[float, ...]:
        """Arrivals of each of the last seconds before the last reading, newest last; as many whole seconds as are covered."""
        for table in self.counters.tables:
            if model in table.names:
                covered = min(seconds, int(table.span_s + 1e-9))
                counts = table.rates(ARRIVALS, 1.0, covered)[::-1, table.names.index(model)]
                return tuple(counts.tolist())
        return ()


NO_ROUTES = RoutedSeries()


def _tails_ms(histograms: Mapping[str, Histograms]) -> dict[str, Percentiles]:
    """The percentiles of the models of which something ended."""
    ends = {model: both for model, each in histograms.items() if (both := _window(each)) is not None}
    return {model: percentiles_between(*both, (50.0, 99.0)) for model, both in ends.items()}


def _window(histograms: Histograms) -> tuple[LatencyHistogram, LatencyHistogram] | None:
    """The newest histogram and that at the begin of the latency window; None where nothing has ended since."""
    if len(histograms) < 2:
        return None
    newest_s, newest = histograms[-1]
    index = bisect_right(histograms, newest_s - LATENCY_WINDOW_S, key=_TIME)
    oldest = histograms[max(0, index - 1)][1]
    return None if newest is oldest else (newest, oldest)


def _appended(histograms: Histograms, reading: RouteReading) -> Histograms:
    old = bisect_right(histograms, reading.at_s - 2 * LATENCY_WINDOW_S, key=_TIME)
    same = bool(histograms) and histograms[-1][1] == reading.latency
    return (*histograms[old:], (reading.at_s, histograms[-1][1] if same else reading.latency))
