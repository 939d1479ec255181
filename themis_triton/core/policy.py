"""The policies' parameters: the one place that holds each key's default, bounds and meaning; the settings schema is generated from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from themis_triton.core.options import option, section


class PolicyName(StrEnum):
    """The policies that ship; each one is a `propose` function. All but `themis` are baselines; `oracle` is for simulations only."""

    THEMIS = "themis"
    THEMIS_PAPER = "themis-paper"
    HORIZONTAL = "horizontal"
    VERTICAL = "vertical"
    INFERLINE = "inferline"
    STATIC = "static"
    QUEUE_TIME = "queue-time"
    CONCURRENCY = "concurrency"
    VERTICAL_THEMIS = "vertical-themis"
    ORACLE = "oracle"

    @property
    def runs_live(self) -> bool:
        """Whether it needs no knowledge that only a simulation has."""
        return self is not PolicyName.ORACLE


class ForecastName(StrEnum):
    """The forecast of the arrival rate; see `forecast/`. NONE: the largest rate of the last seconds continues."""

    NONE = "none"
    LINEAR = "linear"
    CLASSIFIER = "classifier"
    QUANTILE = "quantile"


class QueueingModel(StrEnum):
    """How the wait of a request before its batch starts is predicted; see `solver/queueing.py`.

    DYNAMIC_BATCHING: a work-conserving batcher on each server. CENTRAL_QUEUE: one such queue for all servers of a stage. SLO_MARGIN:
    work-conserving too, but waits are not predicted: they may take the margin of the SLO. The others are the paper's.
    """

    DYNAMIC_BATCHING = "dynamic_batching"
    CENTRAL_QUEUE = "central_queue"
    SLO_MARGIN = "slo_margin"
    EXPONENTIAL = "exponential"
    GAMMA = "gamma"
    CONSTANT = "constant"

    @property
    def work_conserving(self) -> bool:
        """Whether an idle instance takes waiting requests at once instead of waiting for a full batch."""
        return self in {QueueingModel.DYNAMIC_BATCHING, QueueingModel.CENTRAL_QUEUE, QueueingModel.SLO_MARGIN}

    @property
    def predicts_busy(self) -> bool:
        """Whether the wait for an idle instance is predicted."""
        return self in {QueueingModel.DYNAMIC_BATCHING, QueueingModel.CENTRAL_QUEUE}


@dataclass(frozen=True, slots=True)
class DemandConfig:
    """How measured arrivals become the demand that plans must carry."""

    rate_window_s: float = option(1.0, "window of the newest rate, which reveals a surge", gt=0)
    burst_window_s: float = option(5.0, "window whose largest one-second rate instances must carry", gt=0)
    stable_window_s: float = option(2.0, "window whose mean rate determines the number of servers", gt=0)
    headroom_sigmas: float = option(1.0, "capacity above the rate, in standard deviations of the arrivals in one second", ge=0)
    slow_actuation_headroom_sigmas: float = option(
        0.0, "headroom above the mean of stable_window_s, for instances whose in-place changes take longer than a tick", ge=0
    )
    server_headroom_sigmas: float = option(0.0, "headroom above the mean of stable_window_s, for the number of servers", ge=0)
    growth_window_s: float = option(2.0, "growth is the difference between the mean rates of two such consecutive windows", gt=0, le=30)
    growth_sigmas: float = option(1.0, "growth below this number of standard deviations is treated as random fluctuation", ge=0)
    trend_window_s: float = option(5.0, "the window of the trend that server launches follow", gt=0, le=30)
    trend_sigmas: float = option(2.0, "a trend below this number of standard deviations is treated as random fluctuation", ge=0)
    max_trend_factor: float = option(2.0, "the trend counts up to this multiple of the rate, however long a launch takes", ge=1)
    max_dispersion: float = option(3.0, "maximum index of dispersion that headroom follows; 1 assumes Poisson arrivals", ge=1)
    backlog_drain_s: float = option(1.0, "time in which a backlog must be served", gt=0)
    backlog_slack_s: float = option(0.1, "arrivals of this duration may wait without counting as backlog, so that batches form", ge=0)
    recurring_rises: bool = option(
        True, "servers are kept for sharp rises that have recurred in the same part of the hour, at the times of the day that had them"
    )
    forecast: ForecastName = option(ForecastName.NONE, "forecast of the rate for the time at which a new server serves")
    forecast_quantile: float = option(0.75, "quantile of the forecast rate", ge=0.5, le=0.99)


@dataclass(frozen=True, slots=True)
class ScaleUpConfig:
    """How capacity is added."""

    burst_headroom_factor: float = option(1.5, "the servers can carry this multiple of the rate by adding instances alone", ge=1)
    burst_memory_s: float = option(
        3600.0,
        "once three bursts or more have made a pipeline miss the percentile of its SLO, servers stand ready for the highest one of this "
        "time; 0 keeps none ready",
        ge=0,
    )
    standby_headroom_factor: float = option(
        1.25,
        "devices in use can carry this multiple of the rate by adding instances alone, also where running servers could take further "
        "ones once it comes; 1 keeps none ahead",
        ge=1,
    )
    max_added_instances: int = option(
        8, "instances added in one tick on all servers together; starting more at once slows the instances that serve", ge=1
    )
    steep_rise_factor: float = option(
        1.5,
        "a newest rate above this multiple of the stable one is a surge that has just begun; its growth is sized one tick later",
        ge=1,
    )


@dataclass(frozen=True, slots=True)
class ScaleDownConfig:
    """How capacity is removed."""

    shrink_stabilization_s: float = option(5.0, "instances are removed after fewer have sufficed for this time", ge=0)
    steady_growth_threshold: float = option(
        0.1, "the load counts as steady while growth and backlog ask for at most this fraction of the rate", ge=0
    )
    scale_in_stabilization_s: float = option(20.0, "a server is retired after fewer servers have sufficed for this time", ge=0)
    scale_in_launch_multiple: float = option(
        3.0, "and for at least this multiple of the time that a launch takes, where only a launch would bring it back", ge=0
    )
    survivor_margin_fraction: float = option(0.1, "margin above the recent peak that the remaining servers must carry", ge=0)


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """When service times that differ from the profile are reported and corrected."""

    window_s: float = option(5.0, "window over which the times of executed batches are compared with the profile", gt=0)
    min_batches: int = option(
        20, "minimum number of batches for a comparison; the window is extended for them, to one minute at most", ge=1
    )
    report_fraction: float = option(0.15, "a model whose batches take this fraction longer or shorter is reported", gt=0)
    step_fraction: float = option(0.05, "step size of the correction of a drifting model's latency", gt=0)
    max_factor: float = option(3.0, "maximum correction, up or down; 1 reports drift without correcting it", ge=1)
    stabilization_s: float = option(10.0, "a correction is lowered after a lower one has sufficed for this time", ge=0)


@dataclass(frozen=True, slots=True)
class HorizontalConfig:
    """Baseline `horizontal`: servers only."""

    instances: int | None = option(None, "instances of each model; by default those with the most throughput for their price", ge=1)
    scale_in_stabilization_s: float = option(10.0, "servers are retired after fewer have sufficed for this time", ge=0)


@dataclass(frozen=True, slots=True)
class ThemisPaperConfig:
    """Baseline `themis-paper`: the published rules."""

    instances: int | None = option(
        None, "instances of each model outside surges; by default those with the most throughput for their price", ge=1
    )
    scale_in_stabilization_s: float = option(10.0, "servers are retired after fewer have sufficed for this time", ge=0)


@dataclass(frozen=True, slots=True)
class VerticalConfig:
    """Baselines `vertical` and `vertical-themis`: instances only."""

    servers: int | None = option(None, "the fixed number of servers; by default those for planned_rps, else as many as can exist", ge=1)
    planned_rps: float | None = option(None, "the rate for which the fewest servers are kept that carry it", gt=0)


@dataclass(frozen=True, slots=True)
class InferLineConfig:
    """Baseline `inferline`: one plan, replicas follow the recent peak."""

    planned_rps: float | None = option(None, "the rate that the plan is made for; by default the rate found at the start", gt=0)
    scale_in_stabilization_s: float = option(10.0, "servers are retired after fewer have sufficed for this time", ge=0)


@dataclass(frozen=True, slots=True)
class StaticConfig:
    """Baseline `static`: one plan that never changes."""

    planned_rps: float | None = option(None, "the rate that the plan is made for; by default the fleet is not changed", gt=0)


DEPRIORITIZE_AFTER_SLO_FRACTION = 0.3
"""Of the SLO, for pipelines with `overload: deprioritize` where the policy names no other.

In an overload the requests that are served have waited for nearly so long, and a full batch then takes up to two thirds of the SLO.
"""


@dataclass(frozen=True, slots=True)
class QueueTimeConfig:
    """Baseline `queue-time`: a Kubernetes HPA on Triton's queue time, with the values that SuperSONIC ships."""

    threshold_ms: float = option(100.0, "queue time per executed batch over 15 s above which servers are added", gt=0)
    scale_out_stabilization_s: float = option(60.0, "a server is added after more have been recommended for this time", ge=0)
    scale_in_stabilization_s: float = option(600.0, "a server is retired after fewer have been recommended for this time", ge=0)


@dataclass(frozen=True, slots=True)
class ConcurrencyConfig:
    """Baseline `concurrency`: Knative's autoscaler with its default windows."""

    target: float | None = option(
        None, "requests inside a server at a time, at most; by default as many as it holds at the largest rate inside the SLO", gt=0
    )
    target_utilization: float = option(0.7, "fraction of the target at which servers are kept", gt=0, le=1)
    stable_window_s: float = option(60.0, "window of the mean concurrency", gt=0)
    panic_window_s: float = option(6.0, "window of the mean concurrency in a burst", gt=0)
    panic_threshold: float = option(2.0, "a burst is a concurrency of this multiple of what the ready servers are kept at", gt=1)


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """The scaling policy and its parameters; the evidence for its constants is in benchmarks/results."""

    name: PolicyName = option(PolicyName.THEMIS, "themis scales both ways; the others are baselines for comparison")
    tick_s: float = option(0.25, "interval between two observations", gt=0)
    queueing: QueueingModel = option(QueueingModel.DYNAMIC_BATCHING, "model of the wait before a batch starts")
    slo_margin_fraction: float = option(0.05, "fraction of the SLO that plans leave free for what profiles cannot capture", ge=0, lt=1)
    memory_margin_fraction: float = option(0.1, "fraction of a device's memory that plans never use", ge=0, lt=1)
    deprioritize_after_slo_fraction: float | None = option(
        None,
        "fraction of the SLO after which a waiting request is served after all others, on launched servers: fewer requests miss the SLO, "
        "by more; Triton batches delayed requests with new ones, and without batching it serves one per 500 ms; by default off, and 0.3 "
        "for pipelines with `overload: deprioritize`; set, it applies to all pipelines without an `overload` of their own",
        gt=0,
        le=1,
    )
    max_stale_s: float = option(3.0, "older readings lead to a hold", gt=0)
    retry_backoff_s: float = option(2.0, "back-off after a refused change; it doubles with each further failure", gt=0)
    retry_backoff_max_s: float = option(60.0, "largest back-off", gt=0)
    plan_horizon_s: float = option(60.0, "time that a plan is expected to last, for weighing its saving against the migration to it", gt=0)
    slot_reallocation_delay_s: float = option(
        5.0, "when slots have been short for this time, a pipeline gives up a server to one whose lost requests weigh more", ge=0
    )
    demand: DemandConfig = section(DemandConfig, "how measured arrivals become demand")
    scale_up: ScaleUpConfig = section(ScaleUpConfig, "how capacity is added")
    scale_down: ScaleDownConfig = section(ScaleDownConfig, "how capacity is removed")
    drift: DriftConfig = section(DriftConfig, "when differences from the profile are reported and corrected")
    horizontal: HorizontalConfig = section(HorizontalConfig, "policy horizontal")
    vertical: VerticalConfig = section(VerticalConfig, "policies vertical and vertical-themis")
    themis_paper: ThemisPaperConfig = section(ThemisPaperConfig, "policy themis-paper")
    inferline: InferLineConfig = section(InferLineConfig, "policy inferline")
    static: StaticConfig = section(StaticConfig, "policy static")
    queue_time: QueueTimeConfig = section(QueueTimeConfig, "policy queue-time")
    concurrency: ConcurrencyConfig = section(ConcurrencyConfig, "policy concurrency")
