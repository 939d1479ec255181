"""Counts the requests of each pipeline that ended, and those that missed the SLO, from the proxy's histograms."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest

import numpy as np
from numpy.typing import NDArray

from themis_triton.core.attainment import Ended, EndedRequests
from themis_triton.core.config import PipelineConfig
from themis_triton.core.graph import folded
from themis_triton.core.observation import LatencyHistogram, RouteReading, Snapshot
from themis_triton.estimate.latency import count_below, difference

EVERY_S = 1.0
"""Requests are counted so often: a pipeline of several client calls takes a convolution."""
AT_ONCE = 100
"""So many pipelines are counted at once; of more, an eighth, so that ticks take alike and each is counted about once in eight."""
WAIT_S = 5.0
"""For so long the calls of the later stages are waited for, so that both ends of a request are in one count."""
CELLS = 128
"""Of the SLO, for sums of the latencies of several calls."""
_EDGES = np.arange(CELLS + 1) / CELLS
Distribution = NDArray[np.float64]
Since = Mapping[str, tuple[float, Mapping[str, RouteReading]]]
"""By pipeline: the time and the readings of the last count."""


def count_ended(since: Since, snapshot: Snapshot, pipelines: Sequence[PipelineConfig]) -> tuple[Since, Ended]:
    """What ended since the last counts, by pipeline; empty while none is due. The first reading counts nothing."""
    routes, ended, counted = {route.model: route for route in snapshot.routes}, dict[str, EndedRequests](), dict(since)
    for pipeline in _in_turn(pipelines, since, snapshot.at_s):
        if any(model not in routes for model in pipeline.client_calls):
            continue
        now = {model: routes[model] for model in pipeline.client_calls}
        at_s, before = counted.setdefault(pipeline.name, (snapshot.at_s, now))
        waited_s = snapshot.at_s - at_s
        if before.keys() != now.keys() or waited_s < 0.0:
            counted[pipeline.name] = (snapshot.at_s, now)
        elif waited_s >= EVERY_S:
            windows = {model: difference(now[model].latency, before[model].latency) for model in now}
            if waited_s < WAIT_S and len(windows) > 1 and any(_total(window) <= 0.0 for window in windows.values()):
                continue
            # A difference of two counters that the proxy does not read at one instant: it may fall a little for a moment.
            failed = max(max(0.0, now[model].failures - before[model].failures) for model in now)
            ended[pipeline.name] = _ended(pipeline, windows, failed)
            counted[pipeline.name] = (snapshot.at_s, now)
    return counted, ended


def _in_turn(pipelines: Sequence[PipelineConfig], since: Since, at_s: float) -> Iterable[PipelineConfig]:
    """Of many pipelines that are due, a part, those whose last count is oldest: then they are not all due at once again."""
    due = [pipeline for pipeline in pipelines if pipeline.name in since and at_s - since[pipeline.name][0] >= EVERY_S]
    if len(due) <= AT_ONCE:
        return pipelines
    oldest = nsmallest(max(AT_ONCE // 2, len(pipelines) // 8), due, key=lambda pipeline: since[pipeline.name][0])
    return (*oldest, *[pipeline for pipeline in pipelines if pipeline.name not in since])


@dataclass(slots=True)
class RequestCounter:
    """Counts over snapshots in a row."""

    _since: Since = field(default_factory=dict)

    def take(self, snapshot: Snapshot, pipelines: Sequence[PipelineConfig]) -> Ended:
        """As `count_ended`."""
        self._since, ended = count_ended(self._since, snapshot, pipelines)
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
    finite = len(window.bounds_ms) - math.isinf(window.bounds_ms[-1])
    below = np.interp(_EDGES * slo_ms, (0.0, *window.bounds_ms[:finite]), (0.0, *window.counts[:finite]))  # as `count_below` for each
    return np.asarray((below[1:] - below[:-1]) / total)


def _at_once() -> Distribution:
    """No time at all."""
    return np.concatenate(([1.0], np.zeros(CELLS - 1)))


def _of_calls(cells: Distribution, calls: float, *, sequential: bool) -> Distribution:
    """Of a request that makes so many calls of a stage, at once or in turn; fewer than one: only some requests make one."""
    if calls < 1.0:
        return (1.0 - calls) * _at_once() + calls * cells
    if sequential:
        return _in_series([cells] * max(1, round(calls)))
    return _steps(np.cumsum(cells) ** calls)


def _in_series(parts: Sequence[Distribution]) -> Distribution:
    total = parts[0]
    for number, part in enumerate(parts[1:]):
        # Times lie in the middle of their cells, so that every second sum is a cell further.
        whole = np.convolve(total, part)
        total = np.concatenate(([0.0], whole[: CELLS - 1])) if number % 2 else whole[:CELLS]
    return total


def _side_by_side(branches: Sequence[Distribution]) -> Distribution:
    together = np.prod([np.cumsum(branch) for branch in branches], axis=0)
    return _steps(together)


def _steps(sums: Distribution) -> Distribution:
    """What cumulative sums add from cell to cell."""
    steps = sums.copy()
    steps[1:] -= sums[:-1]
    return steps


def _total(window: LatencyHistogram) -> float:
    return window.counts[-1] if window.counts else 0.0
