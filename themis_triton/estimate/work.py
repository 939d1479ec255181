"""Executed batches compared with their profile: the batches that ended between two readings, and their profiled time.

The servers' cumulative sums count a batch's time once for each of its requests, so that large batches weigh more. Their statistics by batch
size count every batch once; these are compared.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from themis_triton.core.config import LatencyTable, ModelProfile, ThemisConfig
from themis_triton.core.construction import quick_init
from themis_triton.core.fleet import Server
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot
from themis_triton.estimate.callers import Callee, Waits, callers_of, waits_between

KEEP_S = 60.0
MIN_INTERVAL_S = 0.4
MAX_INTERVAL_S = 15.0
BATCHES_PER_INTERVAL = 5.0
"""Batches of one instance in an interval; with fewer, single batches would distort the number of busy instances."""

_END_S = attrgetter("end_s")

BySize = dict[int, tuple[float, float]]
"""By batch size: batches, and their time in ms."""


@quick_init
@dataclass(frozen=True, slots=True)
class WorkSample:
    """Batches of one model on one server that ended in an interval until `end_s`: their measured and profiled time in ms."""

    end_s: float
    executions: float
    measured_ms: float
    expected_ms: float


@dataclass(frozen=True, slots=True)
class WorkHistory:
    """`opened`: by server, the reading at which its interval began. `samples`: by model, those of the last minute, oldest first."""

    opened: dict[str, ServerReading] = field(default_factory=dict)
    samples: dict[str, tuple[WorkSample, ...]] = field(default_factory=dict)


def observe(history: WorkHistory, snapshot: Snapshot, config: ThemisConfig) -> WorkHistory:
    """The history with one more snapshot. An interval ends once it is long enough; one in which counters fell gives no sample."""
    servers, callers = {server.name: server for server in snapshot.servers}, callers_of(config)
    opened = {name: reading for name, reading in history.opened.items() if name in servers}
    samples = {model: _newer(kept, snapshot.at_s - KEEP_S) for model, kept in history.samples.items()}
    for reading in snapshot.readings:
        if not reading.has_batches or reading.server not in servers:
            continue
        before = opened.setdefault(reading.server, reading)
        if before is reading:
            continue
        duration_s = reading.at_s - before.at_s
        if 0.0 < duration_s < MIN_INTERVAL_S:
            continue
        executed = _executed(before, reading)
        if executed is not None and duration_s < _min_duration_s(executed):
            continue
        opened[reading.server] = reading
        interval = Interval(executed or {}, duration_s, callers, waits_between(before, reading, callers))
        for model, sample in _samples(interval, servers[reading.server], reading.at_s, config):
            samples[model] = (*samples.get(model, ()), sample)
    return WorkHistory(opened, samples)


def _newer(samples: tuple[WorkSample, ...], after_s: float) -> tuple[WorkSample, ...]:
    """Those that ended after a time; they are in order of time."""
    return samples[bisect_right(samples, after_s, key=_END_S) :]


def _executed(before: ServerReading, after: ServerReading) -> dict[str, BySize] | None:
    """Batches that ended between two readings; None when a counter fell because the server or a model restarted."""
    models = {model: _increase(before.models.get(model), counters) for model, counters in after.models.items()}
    if any(by_size is None for by_size in models.values()):
        return None
    return {model: by_size for model, by_size in models.items() if by_size}


def _increase(before: ModelCounters | None, after: ModelCounters) -> BySize | None:
    if before is None or before.batches == after.batches:
        return {}
    old = {batch.size: (batch.executions, batch.compute_us) for batch in before.batches}
    increase: BySize = {}
    for batch in after.batches:
        executions, compute_us = old.pop(batch.size, (0.0, 0.0))
        if batch.executions < executions or batch.compute_us < compute_us:
            return None
        if batch.executions > executions:
            increase[batch.size] = (batch.executions - executions, (batch.compute_us - compute_us) / 1000.0)
    return None if old else increase


def _min_duration_s(executed: Mapping[str, BySize]) -> float:
    """Shortest duration of an interval with these batches."""
    means_ms = [sum(ms for _, ms in each.values()) / sum(count for count, _ in each.values()) for each in executed.values()]
    return min(MAX_INTERVAL_S, max(MIN_INTERVAL_S, BATCHES_PER_INTERVAL * max(means_ms, default=0.0) / 1000.0))


@dataclass(frozen=True, slots=True)
class Interval:
    """The batches that ended on a server in an interval, and what callers among its models waited for their callees."""

    executed: Mapping[str, BySize]
    duration_s: float
    callers: Mapping[str, tuple[Callee, ...]] = field(default_factory=dict)
    waits: Mapping[str, Waits] = field(default_factory=dict)

    def measured_ms(self, model: str) -> float:
        """The time of a model's batches; of a caller's, without its callees' queues, which no instance of its own would shorten."""
        ms = _total_ms(self.executed[model])
        return ms * self.waits[model].without_queues(ms) if model in self.waits else ms

    def levels(self, server: Server) -> dict[str, float]:
        """By model, the mean number of busy instances that its batches met. A caller occupies no device while it waits for a callee."""
        busy = {}
        for model, by_size in self.executed.items():
            ms = _total_ms(by_size)
            mean = (self.waits[model].without_calls(ms) if model in self.waits else ms) / 1000.0 / self.duration_s
            busy[model] = min(mean, _instances(server, model, mean))
        own = {model: busy_during_batch(busy, model, _instances(server, model, busy[model])) for model in busy}
        return {model: self._level_of_callees(model, own) for model in own}

    def _level_of_callees(self, model: str, levels: Mapping[str, float]) -> float:
        """A caller's batches meet what its callees' batches do."""
        return max((levels[callee.model] for callee in self.callers.get(model, ()) if callee.model in levels), default=levels[model])


def _total_ms(by_size: BySize) -> float:
    return sum(ms for _, ms in by_size.values())


def busy_levels(
    before: ServerReading, after: ServerReading, server: Server, callers: Mapping[str, tuple[Callee, ...]]
) -> dict[str, float] | None:
    """By model, the mean number of busy instances that its batches met between two readings; None while these are too close together.

    Empty where nothing ended, or a counter fell.
    """
    executed = _executed(before, after)
    duration_s = after.at_s - before.at_s
    if executed is None:
        return {}
    if duration_s < _min_duration_s(executed):
        return None
    return Interval(executed, duration_s, callers, waits_between(before, after, callers)).levels(server)


def _samples(interval: Interval, server: Server, end_s: float, config: ThemisConfig) -> Iterable[tuple[str, WorkSample]]:
    levels = interval.levels(server)
    for model, by_size in interval.executed.items():
        if model in config.models:
            seen = levels[model]
            expected_ms = sum(count * mean_ms(config.models[model].profile, size, seen) for size, (count, _) in by_size.items())
            executions = sum(count for count, _ in by_size.values())
            yield model, WorkSample(end_s, executions, interval.measured_ms(model), expected_ms)


def _instances(server: Server, model: str, busy: float) -> int:
    """Instances of the model on the server; for an unknown model as many as were busy."""
    return server.models[model].instances if model in server.models else max(1, math.ceil(busy))


def busy_during_batch(busy: Mapping[str, float], model: str, instances: int) -> float:
    """Mean number of busy instances on the server while a batch of the model runs, itself included.

    `1 + m − ρ`: m is the mean number of busy instances of all models by Little's law (Σ batch times / time), ρ that of one of the model's
    instances, assumed to be independent. It is 1 without load, and the number of instances when all are busy. Against a request-level
    simulation of two models (1 to 8 instances each, 3 to 60 requests/s) the ratio of drift stays within 0.97 and 1.03 with it.
    """
    return 1.0 + sum(busy.values()) - busy[model] / instances


def mean_ms(profile: ModelProfile, size: int, busy: float) -> float:
    """Mean service time of the profile, in ms: of the measured means, else of the table.

    Linear between the table's points and, never falling, beyond its last.
    """
    table = profile.mean_table or profile.table
    row, batch_share = _place(table.batches, size)
    column, busy_share = _place(table.instances, busy)
    rows = (row, min(row + 1, len(table.batches) - 1))
    low_ms, high_ms = (_across(table, each, column, busy_share) for each in rows)
    return _between(low_ms, high_ms, batch_share)


def _across(table: LatencyTable, row: int, column: int, share: float) -> float:
    values = table.latency_ms[row]
    return _between(values[column], values[min(column + 1, len(values) - 1)], share)


def _place(axis: Sequence[int], value: float) -> tuple[int, float]:
    """Index of the point before, and the share of the way to the next; above 1 beyond the last."""
    if value <= axis[0] or len(axis) == 1:
        return 0, 0.0
    index = min(bisect_right(axis, value), len(axis) - 1) - 1
    return index, (value - axis[index]) / (axis[index + 1] - axis[index])


def _between(low_ms: float, high_ms: float, share: float) -> float:
    value_ms = low_ms + share * (high_ms - low_ms)
    return max(value_ms, high_ms) if share > 1.0 else value_ms
