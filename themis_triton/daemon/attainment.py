"""Counts the requests of each pipeline that ended, and those that missed the SLO, from the proxy's histograms."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.config import PipelineConfig
from themis_triton.core.graph import folded
from themis_triton.core.observation import LatencyHistogram, RouteReading, Snapshot
from themis_triton.estimate.latency import count_below, difference

EVERY_S = 1.0
"""Requests are counted so often: a pipeline of several client calls takes a convolution."""
WAIT_S = 5.0
"""For so long the calls of the later stages are waited for, so that both ends of a request are in one count."""
CELLS = 128
"""Of the SLO, for sums of the latencies of several calls."""
Distribution = NDArray[np.float64]
Ended = Mapping[str, EndedRequests]
NOTHING_ENDED: Ended = MappingProxyType({})


@dataclass(slots=True)
class RequestCounter:
    """Counts from the first reading on. Requests that ended while no sidecar ran are not counted."""

    _since: dict[str, tuple[float, Mapping[str, RouteReading]]] = field(default_factory=dict)

    def take(self, snapshot: Snapshot, pipelines: Iterable[PipelineConfig]) -> Ended:
        """What ended since the last count, by pipeline; empty while none is due."""
        routes, ended = {route.model: route for route in snapshot.routes}, dict[str, EndedRequests]()
        for pipeline in pipelines:
            if any(model not in routes for model in pipeline.client_calls):
                continue
            now = {model: routes[model] for model in pipeline.client_calls}
            at_s, before = self._since.setdefault(pipeline.name, (snapshot.at_s, now))
            waited_s = snapshot.at_s - at_s
            if before.keys() != now.keys() or waited_s < 0.0:
                self._since[pipeline.name] = (snapshot.at_s, now)
            elif waited_s >= EVERY_S:
                windows = {model: difference(now[model].latency, before[model].latency) for model in now}
                if waited_s < WAIT_S and len(windows) > 1 and any(_total(window) <= 0.0 for window in windows.values()):
                    continue
                # A difference of two counters that the proxy does not read at one instant: it may fall a little for a moment.
                failed = max(max(0.0, now[model].failures - before[model].failures) for model in now)
                ended[pipeline.name] = _ended(pipeline, windows, failed)
                self._since[pipeline.name] = (snapshot.at_s, now)
        return ended


def _ended(pipeline: PipelineConfig, windows: Mapping[str, LatencyHistogram], failed: float) -> EndedRequests:
    """A request of several calls is late with the probability that their times add up to more than the SLO, as if independent.

    An upper bound: a request that failed after the SLO counts as slow and as failed, because the proxy does not tell how many were both.
    """
    first = pipeline.client_calls[0]
    calls = pipeline.per_request[0] if pipeline.entry is None else 1.0
    requests = max(_total(windows[first]) / max(1.0, calls), failed)
    if requests <= 0.0:
        return EndedRequests()
    if len(pipeline.client_calls) == 1 and calls <= 1.0:
        slow = _total(windows[first]) - count_below(windows[first], pipeline.slo_ms)
    else:
        slow = requests * _late_fraction(pipeline, windows)
    return EndedRequests(requests, min(requests, max(0.0, slow) + failed))


def _late_fraction(pipeline: PipelineConfig, windows: Mapping[str, LatencyHistogram]) -> float:
    called = zip(pipeline.stages, pipeline.per_request, pipeline.sequential, strict=True)
    stages = {stage: _of_calls(_cells(windows[stage], pipeline.slo_ms), calls, sequential=turns) for stage, calls, turns in called}
    if pipeline.graph is None:
        total = _in_series([stages[stage] for stage in pipeline.stages])
    else:
        total = folded(pipeline.graph, stages.__getitem__, _in_series, _side_by_side, _side_by_side)
    return 1.0 - float(total.sum())


def _cells(window: LatencyHistogram, slo_ms: float) -> Distribution:
    """The probability of each of `CELLS` equal parts of the SLO; what is missing to 1 takes longer. All 0 ms without calls."""
    total = _total(window)
    if total <= 0.0:
        return _at_once()
    below = np.array([count_below(window, slo_ms * cell / CELLS) for cell in range(CELLS + 1)])
    return np.asarray(np.diff(below) / total)


def _at_once() -> Distribution:
    """No time at all."""
    return np.concatenate(([1.0], np.zeros(CELLS - 1)))


def _of_calls(cells: Distribution, calls: float, *, sequential: bool) -> Distribution:
    """Of a request that makes so many calls of a stage, at once or in turn; fewer than one: only some requests make one."""
    if calls < 1.0:
        return (1.0 - calls) * _at_once() + calls * cells
    if sequential:
        return _in_series([cells] * max(1, round(calls)))
    return np.diff(np.cumsum(cells) ** calls, prepend=0.0)


def _in_series(parts: Sequence[Distribution]) -> Distribution:
    total = parts[0]
    for number, part in enumerate(parts[1:]):
        # Times lie in the middle of their cells, so that every second sum is a cell further.
        whole = np.convolve(total, part)
        total = np.concatenate(([0.0], whole[: CELLS - 1])) if number % 2 else whole[:CELLS]
    return total


def _side_by_side(branches: Sequence[Distribution]) -> Distribution:
    together = np.prod([np.cumsum(branch) for branch in branches], axis=0)
    return np.diff(together, prepend=0.0)


def _total(window: LatencyHistogram) -> float:
    return window.counts[-1] if window.counts else 0.0


class RollingCounts:
    """The requests of the last so many seconds, in cells of time, as a running sum."""

    def __init__(self, width_s: float, cell_s: float) -> None:
        self._width_s, self._cell_s = width_s, cell_s
        self._cells: deque[tuple[float, EndedRequests]] = deque()
        self._sum = EndedRequests()

    def add(self, at_s: float, ended: EndedRequests) -> None:
        """Add requests. A time before the newest cell counts in that."""
        start_s = at_s // self._cell_s * self._cell_s
        if self._cells and self._cells[-1][0] >= start_s:
            start_s, earlier = self._cells.pop()
            self._cells.append((start_s, earlier + ended))
        else:
            self._cells.append((start_s, ended))
        self._sum += ended

    def at(self, now_s: float) -> EndedRequests:
        """The sum over the window that ends now."""
        while self._cells and self._cells[0][0] <= now_s - self._width_s:
            self._sum -= self._cells.popleft()[1]
        if not self._cells:
            self._sum = EndedRequests()
        return self._sum


class PipelineWindows:
    """One pipeline's requests of the last minute, hour and day."""

    def __init__(self) -> None:
        self._windows = (RollingCounts(60.0, 1.0), RollingCounts(3600.0, 60.0), RollingCounts(86_400.0, 60.0))

    def add(self, at_s: float, ended: EndedRequests) -> None:
        """Add requests that ended."""
        for window in self._windows:
            window.add(at_s, ended)

    def at(self, now_s: float) -> tuple[EndedRequests, ...]:
        """The sums of the three windows."""
        return tuple(window.at(now_s) for window in self._windows)
