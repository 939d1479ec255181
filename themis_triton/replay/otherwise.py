"""What would have come of recorded arrivals under other settings, by the simulator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from themis_triton.core.config import Mode, ThemisConfig
from themis_triton.core.fleet import Models
from themis_triton.core.history import TrafficMinute, UsageMinute
from themis_triton.core.observation import Snapshot
from themis_triton.decide.policy import Load
from themis_triton.sim.result import SimResult
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import SimOptions
from themis_triton.sim.starts import prepared
from themis_triton.solver.surface import FloatArray

BINS = 12
"""Spans into which counts over time are joined."""


@dataclass(frozen=True, slots=True)
class Account:
    """What a stretch of time had, or would have had; `changes` are those that were carried out.

    `late` None: no request ended, or it was not measured. `servers` and `instances`: their means in each of `BINS` equal spans.
    """

    name: str
    requests: int
    late: float | None
    server_hours: float
    instance_hours: float
    cost: float
    changes: int | None
    servers: tuple[float, ...] = ()
    instances: tuple[float, ...] = ()
    late_by_pipeline: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A stretch of recorded time: its length, each pipeline's arrivals in seconds from its start, and the first servers' models."""

    start_s: float
    duration_s: float
    arrivals_s: Mapping[str, FloatArray]
    first: tuple[Models, ...]


def arrival_times(minutes: Iterable[TrafficMinute], start_s: float, duration_s: float, seed: int = 0) -> dict[str, FloatArray]:
    """Each pipeline's arrivals in seconds from the start: as many in each second as were counted there, at random within it."""
    counts: dict[str, list[tuple[int, float]]] = {}
    for minute in minutes:
        counts.setdefault(minute.pipeline, []).extend((minute.at_s + second, count) for second, count in enumerate(minute.arrivals))
    numbered = enumerate(sorted(counts.items()))
    return {name: _times(sorted(rows), start_s, duration_s, np.random.default_rng([seed, number])) for number, (name, rows) in numbered}


def _times(rows: Sequence[tuple[int, float]], start_s: float, duration_s: float, random: np.random.Generator) -> FloatArray:
    if not rows:
        return np.zeros(0)
    seconds, counts = np.array([second for second, _ in rows], dtype=np.float64), np.array([count for _, count in rows])
    whole = np.diff(np.floor(np.cumsum(counts) + 1e-6), prepend=0.0).astype(np.int64)
    times = np.sort(np.repeat(seconds, whole) + random.random(int(whole.sum()))) - start_s
    chosen: FloatArray = times[(times >= 0.0) & (times < duration_s)]
    return chosen


def with_changes(config: ThemisConfig, slos_ms: Mapping[str, float], policy: str | None) -> ThemisConfig:
    """Settings with other SLOs or another policy, in force."""
    pipelines = tuple(replace(p, slo_ms=slos_ms.get(p.name, p.slo_ms)) for p in config.pipelines)
    changed = replace(config, pipelines=pipelines, mode=Mode.ACTIVE)
    return changed if policy is None else changed.under(type(config.policy.name)(policy))


def simulated_account(name: str, config: ThemisConfig, stretch: Stretch, seed: int = 0) -> Account:
    """What the settings would have had under the stretch's arrivals."""
    seconds = [np.bincount(times.astype(np.int64)) for times in stretch.arrivals_s.values() if times.size]
    largest_rps = max((float(counts.max()) for counts in seconds), default=0.0)
    own = prepared(config, config.policy.name, Load(largest_rps, largest_rps))
    options = SimOptions(seed=seed, servers=stretch.first or None, keep_ticks=False)
    result = simulate(own, stretch.arrivals_s, stretch.duration_s, options)
    return _account(name, result)


def _account(name: str, result: SimResult) -> Account:
    late = {run.name: float(np.mean(run.violated)) for run in result.pipelines if run.arrival_s.size}
    return Account(
        name=name,
        requests=result.requests,
        late=result.violations if result.requests else None,
        server_hours=result.server_seconds / 3600.0,
        instance_hours=result.instance_seconds / 3600.0,
        cost=result.cost,
        changes=sum(result.actions.values()),
        servers=_binned([(use.at_s - result.start_s, use.servers) for use in result.usage], result.duration_s),
        instances=_binned([(use.at_s - result.start_s, use.instances) for use in result.usage], result.duration_s),
        late_by_pipeline=late,
    )


def measured_account(name: str, usage: Sequence[UsageMinute], traffic: Sequence[TrafficMinute], changes: int | None) -> Account:
    """What was measured, by the minute."""
    ended, late = dict[str, float](), dict[str, float]()
    for minute in traffic:
        ended[minute.pipeline] = ended.get(minute.pipeline, 0.0) + minute.ended
        late[minute.pipeline] = late.get(minute.pipeline, 0.0) + minute.late
    total = sum(ended.values())
    return Account(
        name=name,
        requests=round(sum(sum(minute.arrivals) for minute in traffic)),
        late=sum(late.values()) / total if total else None,
        server_hours=sum(minute.server_s for minute in usage) / 3600.0,
        instance_hours=sum(minute.instance_s for minute in usage) / 3600.0,
        cost=sum(minute.cost for minute in usage),
        changes=changes,
        late_by_pipeline={pipeline: late[pipeline] / count for pipeline, count in ended.items() if count},
    )


def counts_over_time(snapshots: Sequence[Snapshot]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Servers and instances in each of `BINS` equal spans of the snapshots' time."""
    start_s, end_s = snapshots[0].at_s, snapshots[-1].at_s
    servers = [(each.at_s - start_s, float(len(each.servers))) for each in snapshots]
    instances = [(each.at_s - start_s, float(_instances(each))) for each in snapshots]
    return _binned(servers, end_s - start_s), _binned(instances, end_s - start_s)


def _instances(snapshot: Snapshot) -> int:
    return sum(state.instances for server in snapshot.servers for state in server.models.values())


def _binned(steps: Sequence[tuple[float, float]], duration_s: float) -> tuple[float, ...]:
    """The mean in each span of a value that stays until its next step."""
    if duration_s <= 0.0 or not steps:
        return ()
    at_s, values = np.array([at for at, _ in steps] + [duration_s]), np.array([value for _, value in steps])
    integral = np.concatenate([[0.0], np.cumsum(np.diff(at_s) * values)])
    edges = np.interp(np.linspace(0.0, duration_s, BINS + 1), at_s, integral)
    return tuple(float(value) for value in np.diff(edges) / (duration_s / BINS))
