"""Sections of the settings file that say how plans are made: prices, policies and their constants, the rules of plans."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from themis_triton.core.config import (
    ForecastName,
    Placement,
    PlanningConfig,
    PolicyConfig,
    PolicyName,
    Prices,
    QueueingModel,
    ThroughputRule,
)
from themis_triton.settings.kinds import Count, PositiveSeconds, Seconds, Section

_POLICY = PolicyConfig()
_PLANNING = PlanningConfig()
_PRICES = Prices()


class PriceSettings(Section):
    """What capacity costs, in any one unit a second; only the ratio matters."""

    server: float = Field(default=_PRICES.server, ge=0, description="one server, whatever it holds")
    instance: float = Field(default=_PRICES.instance, ge=0, description="one instance of a model")
    lost_request: float = Field(default=_PRICES.lost_request, ge=0, description="a request outside its SLO, in the unit times seconds")
    grow_risk: float = Field(default=_PRICES.grow_risk, ge=0, description="expected loss by one growth in place, likewise")
    shrink_risk: float = Field(default=_PRICES.shrink_risk, ge=0, description="by one shrink in place")
    rebatch_risk: float = Field(default=_PRICES.rebatch_risk, ge=0, description="by one reload with other batches")
    launch_risk: float = Field(default=_PRICES.launch_risk, ge=0, description="by one server started")
    retire_risk: float = Field(default=_PRICES.retire_risk, ge=0, description="by one server drained and stopped")


class PolicySettings(Section):
    """Which policy decides, and its parameters."""

    name: Annotated[PolicyName, Field(strict=False)] = Field(
        default=_POLICY.name, description="themis scales both ways; the others are baselines to compare it with"
    )
    tick_s: PositiveSeconds = Field(default=_POLICY.tick_s, description="from one observation to the next")
    rate_window_s: PositiveSeconds = Field(default=_POLICY.rate_window_s, description="window of the rate that a surge is seen by")
    burst_window_s: PositiveSeconds = Field(default=_POLICY.burst_window_s, description="window whose largest rate instances must carry")
    stable_window_s: PositiveSeconds = Field(default=_POLICY.stable_window_s, description="window whose rate the number of servers follows")
    headroom_sigmas: float = Field(
        default=_POLICY.headroom_sigmas, ge=0, description="capacity above the rate, in standard deviations of a Poisson second (√rate)"
    )
    slow_actuation_headroom_sigmas: float = Field(
        default=_POLICY.slow_actuation_headroom_sigmas,
        ge=0,
        description="likewise above the mean of stable_window_s, for instances whose changes take more than a tick",
    )
    slow_headroom_sigmas: float = Field(
        default=_POLICY.slow_headroom_sigmas, ge=0, description="likewise, for the number of servers, over the mean of stable_window_s"
    )
    growth_window_s: float = Field(
        default=_POLICY.growth_window_s,
        gt=0,
        le=30,
        description="growth is the difference of the mean rates of two such windows, one after the other",
    )
    growth_sigmas: float = Field(
        default=_POLICY.growth_sigmas,
        ge=0,
        description="growth of the last seconds' rate counts for instances beyond so many standard deviations of what chance makes",
    )
    trend_window_s: float = Field(
        default=_POLICY.trend_window_s, gt=0, le=30, description="likewise for the growth that servers are started for"
    )
    trend_sigmas: float = Field(
        default=_POLICY.trend_sigmas,
        ge=0,
        description="likewise the growth of some more seconds, over the time that a server takes to start",
    )
    dispersion_max: float = Field(
        default=_POLICY.dispersion_max,
        ge=1,
        description="largest index of dispersion of the arrivals that headroom follows, as measured; 1: as if they were Poisson's",
    )
    backlog_drain_s: PositiveSeconds = Field(
        default=_POLICY.backlog_drain_s, description="time in which waiting requests shall be worked off"
    )
    backlog_slack_s: Seconds = Field(
        default=_POLICY.backlog_slack_s, description="arrivals of so long may wait without counting as backlog: batches form of them"
    )
    max_added_instances: Count = Field(
        default=_POLICY.max_added_instances,
        description="instances added in one tick, on all servers together: starting many at once starves those that serve",
    )
    shrink_stabilization_s: Seconds = Field(default=_POLICY.shrink_stabilization_s, description="calm time before instances shrink")
    steady_growth_threshold: float = Field(
        default=_POLICY.steady_growth_threshold,
        ge=0,
        description="growth and backlog that ask for no more than this part of the rate are calm",
    )
    scale_in_stabilization_s: Seconds = Field(default=_POLICY.scale_in_stabilization_s, description="calm time before a server goes")
    survivor_margin_fraction: float = Field(
        default=_POLICY.survivor_margin_fraction, ge=0, description="margin above the recent peak that the survivors must carry"
    )
    burst_headroom_factor: float = Field(
        default=_POLICY.burst_headroom_factor,
        ge=1,
        description="servers are kept so that their instances alone could carry so many times the rate",
    )
    forecast: Annotated[ForecastName, Field(strict=False)] = Field(
        default=_POLICY.forecast, description="what foresees the rate while a server starts: nothing, the trend, or a learnt model"
    )
    forecast_quantile: float = Field(
        default=_POLICY.forecast_quantile, ge=0.5, le=0.99, description="how sure a forecast shall be that no larger rate comes"
    )
    queueing: Annotated[QueueingModel, Field(strict=False)] = Field(
        default=_POLICY.queueing, description="how the wait before a batch starts is predicted"
    )
    max_stale_s: PositiveSeconds = Field(default=_POLICY.max_stale_s, description="readings older than this lead to holding still")
    retry_backoff_s: PositiveSeconds = Field(default=_POLICY.retry_backoff_s, description="pause after a refused change, doubled each time")
    retry_backoff_max_s: PositiveSeconds = Field(default=_POLICY.retry_backoff_max_s, description="the longest such pause")
    memory_margin_fraction: float = Field(
        default=_POLICY.memory_margin_fraction, ge=0, lt=1, description="part of a device's memory that is never planned with"
    )
    slo_margin_fraction: float = Field(
        default=_POLICY.slo_margin_fraction, ge=0, lt=1, description="part of the SLO that plans leave free, for what a profile cannot know"
    )
    deprioritize_after_slo_fraction: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="part of the SLO after which a request that waits in a queue lets all others pass, on servers that are launched; "
        "fewer are late, those later (Triton serves them in a batch with others, or one batch each half second); by default none does",
    )
    plan_horizon_s: PositiveSeconds = Field(
        default=_POLICY.plan_horizon_s,
        description="how long a plan is expected to hold, so that its saving is weighed against the way to it",
    )
    slot_reallocation_delay_s: Seconds = Field(
        default=_POLICY.slot_reallocation_delay_s,
        description="slots short for so long: a pipeline gives a server to one whose lost requests weigh more",
    )
    drift_window_s: PositiveSeconds = Field(
        default=_POLICY.drift_window_s, description="window over which the time of executed batches is compared with the profile"
    )
    drift_min_batches: Count = Field(
        default=_POLICY.drift_min_batches, description="fewest batches for that; the window reaches back for them, a minute at most"
    )
    drift_report_fraction: float = Field(
        default=_POLICY.drift_report_fraction, gt=0, description="a model whose batches take so much longer or shorter is reported to drift"
    )
    drift_step_fraction: float = Field(
        default=_POLICY.drift_step_fraction, gt=0, description="steps in which a drifting model's latency is corrected"
    )
    drift_max_factor: float = Field(
        default=_POLICY.drift_max_factor, ge=1, description="the largest such correction, up or down; 1: drift is only reported"
    )
    drift_stabilization_s: Seconds = Field(
        default=_POLICY.drift_stabilization_s, description="so long a smaller correction must have sufficed before plans count with it"
    )
    baseline_stabilization_s: Seconds = Field(
        default=_POLICY.baseline_stabilization_s,
        description="policies themis-paper, horizontal and inferline: so long fewer servers must have sufficed in a row before some go",
    )
    vertical_servers: Count | None = Field(
        default=None, description="policy vertical: its fixed number of servers; by default all that there are"
    )
    horizontal_instances: Count | None = Field(
        default=None,
        description="policies horizontal and themis-paper: instances a model outside surges; by default what carries most for its price",
    )
    planned_rps: float | None = Field(
        default=None, gt=0, description="policies static and inferline: the rate that they plan for once; by default what they find"
    )


class PlanningSettings(Section):
    """The rules that plans are made by. What runs live is colocated, with instances; the rest is for `themis plan` and simulations."""

    placement: Annotated[Placement, Field(strict=False)] = Field(
        default=_PLANNING.placement,
        description="colocated: every server holds all stages; separate: a server holds one stage (`themis plan` and simulations only)",
    )
    throughput: Annotated[ThroughputRule, Field(strict=False)] = Field(
        default=_PLANNING.throughput, description="instances: each works on a batch of its own; cores: all of a server's work on one batch"
    )
    paper_rounding: bool = Field(
        default=_PLANNING.paper_rounding, description="demand in whole requests/s, a server's throughput rounded down to whole requests/s"
    )
    max_servers: Count | None = Field(
        default=None,
        description="servers that plans may use, those of all stages together; by default the adopted ones and one a slot",
    )
