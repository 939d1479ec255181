"""Estimates from the readings: rates, backlog and latency per model, demand per pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

PROXY = "proxy"
"""The proxy's name among stale sources; the others are servers."""


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """One model over all servers. `*_ms` are None where no request ended in the window.

    `drift_ratio`: measured over profiled time of the executed batches; None where too few were executed.
    `drifting`: the ratio is beyond the settings' bound. `correction`: factor by which plans multiply the profile's latency.
    """

    model: str
    arrival_rps: float
    burst_rps: float
    stable_rps: float
    in_flight: float
    pending: float
    completion_rps: float
    failure_rps: float
    mean_batch: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    p50_ms: float | None = None
    p99_ms: float | None = None
    age_s: float = 0.0
    drift_ratio: float | None = None
    drifting: bool = False
    correction: float = 1.0


@dataclass(frozen=True, slots=True)
class PipelineEstimate:
    """Demand of one pipeline at three time scales (requests/s), its growth, the waiting requests, and its p99.

    `newest_rps` covers the last half second, `recent_rps` the last fraction of a second to two seconds, `burst_rps` is the
    largest one-second rate of the burst window,
    `stable_rps` is the mean of the stable window; `growth_rps_per_s` is the slope of the growth window,
    `trend_rps_per_s` that of the trend window,
    `trend_base_rps` the mean rate of its newer half. `per_second` are the arrivals of the last seconds, newest last,
    at most a minute of them; empty where no forecast needs them.
    """

    pipeline: str
    recent_rps: float
    burst_rps: float
    stable_rps: float
    growth_rps_per_s: float
    backlog: float
    p99_ms: float | None
    dispersion: float = 1.0
    trend_rps_per_s: float = 0.0
    trend_base_rps: float = 0.0
    per_second: tuple[float, ...] = ()
    newest_rps: float = 0.0


class DriftChange(StrEnum):
    """How a model's drift changed in one tick. CHANGED: plans use another factor."""

    BEGAN = "began"
    CHANGED = "changed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """Drift of one model that began, changed or ended in this tick."""

    model: str
    change: DriftChange
    ratio: float
    correction: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate stage's result. `stale`: by source that is out of date, the reason; empty: all are fresh."""

    at_s: float
    models: dict[str, ModelEstimate] = field(default_factory=dict)
    pipelines: dict[str, PipelineEstimate] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    history_s: float = 0.0
    drift_events: tuple[DriftEvent, ...] = ()
