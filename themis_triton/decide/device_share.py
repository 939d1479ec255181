"""Pipelines in which models call others by themselves (BLS): how their surfaces read.

A caller occupies an instance while it waits, but no device. And its callee gets no more requests at a time than callers wait for, so that
it finds hardly any to batch: each instance of a caller that blocks sends its next call only after the last one's answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from themis_triton.core.config import PipelineConfig
from themis_triton.core.graph import Calls, Graph, Series, parts_of, stages_of
from themis_triton.solver.problem import StageProblem
from themis_triton.solver.surface import Surface

BESIDE = 0.25
"""How many more of a callee's instances count as working than callers wait for, for what calls wait for each other.

`benchmarks/callers.py` holds it against a simulation of calls inside calls.
"""


@dataclass(frozen=True, slots=True)
class DeviceShare:
    """The part of a pipeline's busy instances that works at a time, by the times of lone requests.

    `waiting`: by caller, the part of its time in which it waits for its callees. `usual`: that where callers and callees are as many as
    each other's work needs. `called`: models that only callers of this pipeline call, with the calls that one makes at once.
    """

    pipeline: PipelineConfig
    graph: Graph
    waiting: Mapping[str, float]
    usual: float
    called: Mapping[str, int]

    def with_counts(self, instances: Sequence[int]) -> float:
        """The share with so many instances of each stage."""
        counts = dict(zip(self.pipeline.stages, map(float, instances), strict=True))
        return max(1.0, self._working(self.graph, counts)) / sum(counts.values())

    def _working(self, graph: Graph, counts: Mapping[str, float]) -> float:
        """Of callees no more work at a time than callers wait for."""
        if isinstance(graph, str):
            return counts[graph]
        if not isinstance(graph, Calls):
            return sum(self._working(part, counts) for part in parts_of(graph))
        inside, caller, waiting = self._working(graph.inside, counts), counts[graph.caller], self.waiting[graph.caller]
        called = set(stages_of(graph.inside)) <= self.called.keys()
        return caller * (1.0 - waiting) + ((1.0 + BESIDE) * min(inside, caller * waiting) if called else inside)

    def applied(self, stages: Sequence[StageProblem], share: float) -> tuple[StageProblem, ...]:
        """The stages with surfaces over busy instances of which this share works, and of callees without batches of several requests."""
        return tuple(self._applied(stage, share) for stage in stages)

    def _applied(self, stage: StageProblem, share: float) -> StageProblem:
        def changed(surface: Surface) -> Surface:
            at_once = self.called.get(stage.name)
            return _over(surface if at_once is None else _in_turn(surface, at_once), share)

        means = changed(stage.mean_surface) if stage.mean_surface is not None else None
        return replace(stage, surface=changed(stage.surface), mean_surface=means)


def device_share_of(
    pipeline: PipelineConfig, pipelines: Sequence[PipelineConfig], stages: Mapping[str, StageProblem]
) -> DeviceShare | None:
    """The share of one of these pipelines in which models call others; None of any other one."""
    callers = tuple(_callers_in(pipeline.graph)) if pipeline.graph is not None else ()
    if pipeline.graph is None or not callers:
        return None
    calls = dict(zip(pipeline.stages, pipeline.per_request, strict=True))
    times = {name: calls[name] * float((stages[name].mean_surface or stages[name].surface).latency_ms[0, 0]) for name in pipeline.stages}
    others = {model for each in pipelines if each.name != pipeline.name for model in (*each.stages, *each.client_calls)}
    called = {name: _at_once(pipeline, name) for part in callers for name in stages_of(part.inside) if name not in others}
    waiting, idle_ms = {}, 0.0
    for part in callers:
        waiting_ms = min(times[part.caller], _time_of(part.inside, times))
        waiting[part.caller] = waiting_ms / times[part.caller]
        idle_ms += waiting_ms * (1.0 - BESIDE) if set(stages_of(part.inside)) <= called.keys() else waiting_ms
    return DeviceShare(pipeline, pipeline.graph, waiting, 1.0 - idle_ms / sum(times.values()), called)


def _at_once(pipeline: PipelineConfig, stage: str) -> int:
    """The calls of a stage that a caller makes at the same time for one of its requests."""
    rows = zip(pipeline.stages, pipeline.max_per_request, pipeline.sequential, strict=True)
    return next(1 if turns else max(1, math.ceil(most)) for name, most, turns in rows if name == stage)


def _time_of(graph: Graph, times: Mapping[str, float]) -> float:
    """What a request takes; that of a caller contains what it calls."""
    if isinstance(graph, str):
        return times[graph]
    if isinstance(graph, Calls):
        return times[graph.caller]
    parts = [_time_of(part, times) for part in parts_of(graph)]
    return sum(parts) if isinstance(graph, Series) else max(parts)


def _callers_in(graph: Graph) -> Iterator[Calls]:
    if isinstance(graph, Calls):
        yield graph
    for part in () if isinstance(graph, str) else parts_of(graph):
        yield from _callers_in(part)


def _in_turn(surface: Surface, at_once: int) -> Surface:
    """A surface on which larger batches than so many requests take their time once more for each further so many."""
    rows, largest = list(surface.latency_ms), surface.latency_ms[min(at_once, surface.latency_ms.shape[0]) - 1]
    for batch in range(at_once + 1, len(rows) + 1):
        rows[batch - 1] = np.maximum(rows[batch - 1], math.ceil(batch / at_once) * largest)
    return Surface(np.stack(rows))


def _over(surface: Surface, share: float) -> Surface:
    busy = np.arange(1.0, surface.latency_ms.shape[1] + 1.0)
    return Surface(np.stack([np.interp(1.0 + (busy - 1.0) * share, busy, row) for row in surface.latency_ms]))
