"""Estimates from the readings: rates, backlog and latency per model, demand per pipeline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from themis_triton.core.attainment import EndedRequests
from themis_triton.core.construction import quick_init
from themis_triton.core.recurring import RecurringRise
from themis_triton.core.service_times import ENOUGH_EXECUTIONS, Contention

PROXY = "proxy"
"""The proxy's name among stale sources; the others are servers."""
WORK_WINDOW_S = 5.0
"""The window of the servers' queue and compute times, unless a policy has one of its own."""


@quick_init
@dataclass(frozen=True, slots=True)
class RequestSize:
    """What a model's requests are to its instances: the rows of a batch in each, and the share that no cache answers."""

    rows: float = 1.0
    executed: float = 1.0

    def fitting(self, max_batch: int) -> int:
        """The requests in a batch of at most so many rows; Triton divides none, and executes a larger one alone."""
        return max(1, int(max_batch / self.rows + 1e-9))

    def rows_of(self, requests: int) -> int:
        """The rows of a batch of so many requests."""
        return math.ceil(requests * self.rows - 1e-9)


ONE_ROW = RequestSize()


@quick_init
@dataclass(frozen=True, slots=True)
class ModelEstimate:
    """One model over all servers. `*_ms` are None where no request ended in the window.

    `drift_ratio`: measured over profiled time of the executed batches; None where too few were executed.
    `drifting`: the ratio is beyond the settings' bound. `correction`: factor by which plans multiply the profile's latency.
    `waiting`: mean requests in the servers' queues; `batch_rps`: executed batches per second. `size`: of its requests, as plans count them.
    `mean_batch` is in rows.
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
    waiting: float = 0.0
    batch_rps: float = 0.0
    size: RequestSize = ONE_ROW


@quick_init
@dataclass(frozen=True, slots=True)
class OtherDemand:
    """Requests/s that reach a stage besides its pipeline's own: those of another pipeline, or (`pipeline` null) direct calls."""

    pipeline: str | None
    recent_rps: float
    stable_rps: float


@quick_init
@dataclass(frozen=True, slots=True)
class PipelineEstimate:
    """Demand of one pipeline at three time scales (requests/s), its growth, the waiting requests, and its p99.

    `newest_rps` covers the last half second, `recent_rps` the last fraction of a second to two seconds, `burst_rps` is the
    largest one-second rate of the burst window,
    `stable_rps` is the mean of the stable window; `growth_rps_per_s` is the slope of the growth window,
    `trend_rps_per_s` that of the trend window,
    `trend_base_rps` the mean rate of its newer half. `per_second` are the arrivals of the last seconds, newest last,
    at most a minute of them; empty where no forecast needs them. `per_request`: the requests of each stage per request of the pipeline
    that plans use: as configured, until enough requests show another number; empty: as configured. `others`: by stage, what
    reaches its model besides the pipeline's own requests, which the rates count alone; empty: nothing.
    `sizes`: of each stage's requests; empty: each has one row, and is executed.
    `refused_rps`: those that an admission limit refused, which the demand contains. `rest_fraction`: the part of the requests that came
    over REST lately; None where none came, or the pipeline has no limit. `due_rise`: a recurring rise that may begin before a server
    that is launched now serves. `due_jump_rps`: what such rises jump to, of those that may begin before an instance that is added now
    serves; 0: none.
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
    per_request: tuple[float, ...] = ()
    others: tuple[tuple[OtherDemand, ...], ...] = ()
    refused_rps: float = 0.0
    rest_fraction: float | None = None
    due_rise: RecurringRise | None = None
    due_jump_rps: float = 0.0
    sizes: tuple[RequestSize, ...] = ()


class DriftChange(StrEnum):
    """How a model's drift changed in one tick. CHANGED: plans use another factor."""

    BEGAN = "began"
    CHANGED = "changed"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class DriftEvent:
    """Drift of one model that began, changed or ended in this tick. `ratio` None: forgotten, as too few batches tell of it."""

    model: str
    change: DriftChange
    ratio: float | None
    correction: float


@dataclass(frozen=True, slots=True)
class LearntTimes:
    """The service times of a model without a profile, as its executed batches show them; a guess while there are not enough.

    `contention`: by busy instances on the device, the factor on them.
    """

    model: str
    executions: float
    per_request_ms: float
    per_batch_ms: float
    contention: Contention = ()

    @property
    def enough(self) -> bool:
        """Whether they are known well enough to act on."""
        return self.executions >= ENOUGH_EXECUTIONS


@dataclass(frozen=True, slots=True)
class PipelineKnowledge:
    """What is known of the models of a pipeline that have no profile, and whether it is enough to act.

    `requests_missing`: about how many more requests of the pipeline are needed; `seconds_missing`: at the present rate; None: there is
    no traffic.
    """

    pipeline: str
    enough: bool
    models: tuple[LearntTimes, ...]
    requests_missing: float = 0.0
    seconds_missing: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFailure:
    """A model that fails on one server while others serve it, or, `server` None, that fails every request on every server.

    `failed` of `ended` requests failed since `since_s`.
    """

    model: str
    server: str | None
    failed: float
    ended: float
    since_s: float


@quick_init
@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate stage's result. `stale`: by source that is out of date, the reason; empty: all are fresh.

    `knowledge`: of each pipeline with models without a profile. `ended`: the requests that were found to have ended since the tick before.
    """

    at_s: float
    models: dict[str, ModelEstimate] = field(default_factory=dict)
    pipelines: dict[str, PipelineEstimate] = field(default_factory=dict)
    stale: dict[str, str] = field(default_factory=dict)
    history_s: float = 0.0
    drift_events: tuple[DriftEvent, ...] = ()
    failures: tuple[ModelFailure, ...] = ()
    knowledge: tuple[PipelineKnowledge, ...] = ()
    ended: dict[str, EndedRequests] = field(default_factory=dict)
