"""What the readings mean: rates, backlog and latency per model, demand per pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

PROXY = "proxy"
"""The proxy's name among stale sources; the others are servers."""


@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """One model over all servers. `*_ms` are None where nothing ended in the window.

    `drift_ratio`: the time of executed batches over what the profile says for them; None where too few were executed to tell.
    `drifting`: it is off by more than the settings allow. `correction`: what plans multiply the profile's latency with.
    """

    model: str
    arrival_rps: float
    peak_rps: float
    settled_rps: float
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
    """Demand of one pipeline at three time scales (requests/s), its growth, what waits beyond what should, and its p99.

    `recent_rps` covers the last fraction of a second to two seconds, `peak_rps` the largest second of a few,
    `settled_rps` the slow loop's window; `growth_rps_per_s` is the slope over the last seconds, `trend_rps_per_s` over some more,
    from `trend_base_rps`, the mean rate of the newer half of those. `per_second` are the arrivals of the last seconds, newest last,
    at most a minute of them; empty where no forecast asks for them.
    """

    pipeline: str
    recent_rps: float
    peak_rps: float
    settled_rps: float
    growth_rps_per_s: float
    backlog: float
    p99_ms: float | None
    dispersion: float = 1.0
    trend_rps_per_s: float = 0.0
    trend_base_rps: float = 0.0
    per_second: tuple[float, ...] = ()


class DriftChange(StrEnum):
    """What happened to a model's drift in one tick. CHANGED: plans count with another factor than before."""

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
    """The estimate stage's result. `stale` names what could not be trusted, with why; empty means all fresh."""

    at_s: float
    models: dict[str, ModelEstimate] = field(default_factory=dict)
    pipelines: dict[str, PipelineEstimate] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    history_s: float = 0.0
    drift_events: tuple[DriftEvent, ...] = ()
