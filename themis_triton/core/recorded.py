"""A tick's input and its decision as parts that seldom change and numbers that change all the time, and both back from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

from themis_triton.core.action import Plan
from themis_triton.core.decision import Decision, PipelineEvidence
from themis_triton.core.observation import (
    BatchCounters,
    DeviceReading,
    LatencyHistogram,
    ModelCounters,
    RouteReading,
    ServerReading,
    Snapshot,
)


def _names(kind: type[Any], *without: str) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind) if field.name not in without)


_COUNTERS = _names(ModelCounters, "batches")
_ROUTE = _names(RouteReading, "model", "latency")
_READING = _names(ServerReading, "at_s", "models")
_OTHERS = _names(Snapshot, "at_s", "servers", "readings", "routes", "devices")
_DECISION = _names(Decision, "at_s", "evidence")
_PLAN = _names(Plan, "decision_id")
_counters, _route, _reading, _others = attrgetter(*_COUNTERS), attrgetter(*_ROUTE), attrgetter(*_READING), attrgetter(*_OTHERS)
_device, _evidence = attrgetter(*_names(DeviceReading)), attrgetter(*_names(PipelineEvidence))
_decision, _plan = attrgetter(*_DECISION), attrgetter(*_PLAN)
Parts = tuple[Any, ...]
FORM = 2
"""How ticks are divided into parts and numbers; ticks of another form are of another version."""


@dataclass(frozen=True, slots=True)
class RecordedTick:
    """What a tick observed, and what followed from it."""

    snapshot: Snapshot
    decision: Decision
    plan: Plan


def split(tick: RecordedTick) -> tuple[Parts, list[float]]:
    """The parts and the numbers of a tick; `join` makes the same tick of them."""
    snapshot, decision = tick.snapshot, tick.decision
    # Executed batches are not in every reading: behind all other numbers, they do not move these.
    numbers, batches = [snapshot.at_s, decision.at_s], list[float]()
    readings = []
    for reading in snapshot.readings:
        numbers.append(reading.at_s)
        models = []
        for name, counters in reading.models.items():
            numbers += _counters(counters)
            models.append((name, tuple([batch.size for batch in counters.batches])))
            for batch in counters.batches:
                batches += (batch.executions, batch.compute_us)
        readings.append((_reading(reading), tuple(models)))
    routes = []
    for route in snapshot.routes:
        numbers += _route(route)
        numbers += route.latency.counts
        routes.append((route.model, route.latency.bounds_ms, len(route.latency.counts)))
    parts = (
        FORM,
        snapshot.servers,
        tuple(readings),
        tuple(routes),
        tuple([_device(device) for device in snapshot.devices]),
        _others(snapshot),
        tuple([_evidence(evidence) for evidence in decision.evidence]),
        *_decision(decision),
        *_plan(tick.plan),
    )
    return parts, numbers + batches


def join(parts: Parts, numbers: Sequence[float]) -> RecordedTick:
    """The tick of these parts and numbers. ValueError when they do not fit together."""
    form, servers, readings, routes, devices, others, evidence, *rest = parts
    if form != FORM:
        raise ValueError(f"the tick is of form {form!r:.40}, expected {FORM}")
    behind = len(numbers) - sum(2 * len(sizes) for _, models in readings for _, sizes in models)
    values, batches = iter(numbers[:behind]), iter(numbers[behind:])
    at_s, decided_at_s = next(values), next(values)
    snapshot = Snapshot(
        at_s=at_s,
        servers=servers,
        readings=tuple(_joined_reading(each, values, batches) for each in readings),
        routes=tuple(_joined_route(each, values) for each in routes),
        devices=tuple(DeviceReading(*each) for each in devices),
        **dict(zip(_OTHERS, others, strict=True)),
    )
    decided: Mapping[str, Any] = dict(zip((*_DECISION, *_PLAN), rest, strict=True))
    decision = Decision(
        at_s=decided_at_s, evidence=tuple(PipelineEvidence(*each) for each in evidence), **{name: decided[name] for name in _DECISION}
    )
    return RecordedTick(snapshot, decision, Plan(decision.id, **{name: decided[name] for name in _PLAN}))


def _joined_reading(part: Parts, values: Iterator[float], batches: Iterator[float]) -> ServerReading:
    named, models = part
    at_s = next(values)
    counters = {name: _joined_counters(sizes, values, batches) for name, sizes in models}
    return ServerReading(at_s=at_s, models=counters, **dict(zip(_READING, named, strict=True)))


def _joined_counters(sizes: Sequence[int], values: Iterator[float], batches: Iterator[float]) -> ModelCounters:
    counted = {name: next(values) for name in _COUNTERS}
    return ModelCounters(batches=tuple(BatchCounters(size, next(batches), next(batches)) for size in sizes), **counted)


def _joined_route(part: Parts, values: Iterator[float]) -> RouteReading:
    model, bounds_ms, count = part
    counted = {name: next(values) for name in _ROUTE}
    return RouteReading(model=model, latency=LatencyHistogram(bounds_ms, tuple(next(values) for _ in range(count))), **counted)
