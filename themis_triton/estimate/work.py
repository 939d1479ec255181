"""Executed batches beside their profile: what ended on a server between two readings, and how long the profile says that it takes.

Triton's cumulative sums charge a batch's whole time to each of its requests, so that large batches weigh more in a mean than small
ones; its statistics by batch size count every batch once and are what is compared here.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.config import LatencyTable, ModelProfile, ThemisConfig
from themis_triton.core.fleet import Server
from themis_triton.core.observation import ModelCounters, ServerReading, Snapshot

KEEP_S = 60.0
LEAST_INTERVAL_S = 0.4
LONGEST_INTERVAL_S = 15.0
SERVICES_AN_INTERVAL = 5.0
"""An interval holds so many batches of an instance, or the batches' own times would sway how many count as busy at once."""

BySize = dict[int, tuple[float, float]]
"""By batch size: batches, and their time in ms."""


@dataclass(frozen=True, slots=True)
class WorkSample:
    """Batches of one model on one server that ended in an interval until `end_s`: their time in ms, and that of the profile for them."""

    end_s: float
    executions: float
    measured_ms: float
    expected_ms: float


@dataclass(frozen=True, slots=True)
class WorkHistory:
    """By server, the reading with which its present interval began; by model, the samples of the last minute, oldest first."""

    opened: dict[str, ServerReading] = field(default_factory=dict)
    samples: dict[str, tuple[WorkSample, ...]] = field(default_factory=dict)


def observe(history: WorkHistory, snapshot: Snapshot, config: ThemisConfig) -> WorkHistory:
    """With one more snapshot. An interval ends once it is long for the batches in it; one in which counters fell says nothing."""
    opened = {name: reading for name, reading in history.opened.items() if name in {server.name for server in snapshot.servers}}
    samples = {model: [p for p in kept if p.end_s > snapshot.at_s - KEEP_S] for model, kept in history.samples.items()}
    servers = {server.name: server for server in snapshot.servers}
    for reading in snapshot.readings:
        if reading.error is not None or reading.batches_error is not None or reading.server not in servers:
            continue
        executed = _executed(opened.get(reading.server, reading), reading)
        duration_s = reading.at_s - opened.setdefault(reading.server, reading).at_s
        if executed is not None and duration_s < _enough_s(executed):
            continue
        opened[reading.server] = reading
        for model, sample in _samples(executed or {}, servers[reading.server], reading.at_s, duration_s, config):
            samples.setdefault(model, []).append(sample)
    return replace(history, opened=opened, samples={model: tuple(kept) for model, kept in samples.items()})


def _executed(before: ServerReading, after: ServerReading) -> dict[str, BySize] | None:
    """What ended between two readings; None when a counter fell because the server or a model was started anew."""
    models = {model: _increase(before.models.get(model), counters) for model, counters in after.models.items()}
    if any(by_size is None for by_size in models.values()):
        return None
    return {model: by_size for model, by_size in models.items() if by_size}


def _increase(before: ModelCounters | None, after: ModelCounters) -> BySize | None:
    if before is None:
        return {}
    old = {batch.size: (batch.executions, batch.compute_us) for batch in before.batches}
    if not old.keys() <= {batch.size for batch in after.batches}:
        return None
    found: BySize = {}
    for batch in after.batches:
        executions, compute_us = old.get(batch.size, (0.0, 0.0))
        if batch.executions < executions or batch.compute_us < compute_us:
            return None
        if batch.executions > executions:
            found[batch.size] = (batch.executions - executions, (batch.compute_us - compute_us) / 1000.0)
    return found


def _enough_s(executed: Mapping[str, BySize]) -> float:
    """How long an interval with these batches must be."""
    means_ms = [sum(ms for _, ms in each.values()) / sum(count for count, _ in each.values()) for each in executed.values()]
    return min(LONGEST_INTERVAL_S, max(LEAST_INTERVAL_S, SERVICES_AN_INTERVAL * max(means_ms, default=0.0) / 1000.0))


def _samples(
    executed: Mapping[str, BySize], server: Server, end_s: float, duration_s: float, config: ThemisConfig
) -> Iterable[tuple[str, WorkSample]]:
    busy = {model: sum(ms for _, ms in by_size.values()) / 1000.0 / duration_s for model, by_size in executed.items()}
    busy = {model: min(mean, _instances(server, model, mean)) for model, mean in busy.items()}
    for model, by_size in executed.items():
        if model in config.models:
            seen = busy_seen(busy, model, _instances(server, model, busy[model]))
            expected_ms = sum(count * mean_ms(config.models[model].profile, size, seen) for size, (count, _) in by_size.items())
            measured_ms = sum(ms for _, ms in by_size.values())
            yield model, WorkSample(end_s, sum(count for count, _ in by_size.values()), measured_ms, expected_ms)


def _instances(server: Server, model: str, busy: float) -> int:
    """As the server is known to run; of a model that is not known, as many as were busy."""
    return server.models[model].instances if model in server.models else max(1, math.ceil(busy))


def busy_seen(busy: Mapping[str, float], model: str, instances: int) -> float:
    """How many instances a running batch of the model usually finds busy on its server, itself included.

    `1 + m − ρ`, m being the mean busy instances of all models by Little's law (Σ batch times / time) and ρ the model's own a count: as if
    instances were busy independently. At no load it is 1, with all instances always busy their number. Against a request-level
    simulation of two models (1 to 8 instances each, 3 to 60 requests/s) the ratio of drift stays within 0.97 and 1.03 with it.
    """
    return 1.0 + sum(busy.values()) - busy[model] / instances


def mean_ms(profile: ModelProfile, size: int, busy: float) -> float:
    """Mean service time by the profile: of the means where they were measured, else the table as it stands.

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
