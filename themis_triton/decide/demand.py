"""The demand that plans must carry: the measured rate, its growth during an actuation, and the backlog to drain."""

from __future__ import annotations

import math
from typing import NamedTuple

from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.policy import ForecastName, PolicyConfig
from themis_triton.forecast.forecast import Forecaster


class Demand(NamedTuple):
    """An arrival rate, extra capacity beyond it (requests/s), the index of dispersion, and the headroom for random fluctuation.

    `sigmas`: headroom in standard deviations of the arrivals in one second. `other_rps`: what reaches each stage besides; empty: nothing.
    `exact`: plans use this demand without rounding it up.
    """

    rate_rps: float
    extra_rps: float
    dispersion: float
    sigmas: float
    exact: bool = False
    other_rps: tuple[float, ...] = ()

    def with_headroom_rps(self) -> float:
        """The total with its headroom."""
        return self.total_rps + self.sigmas * math.sqrt(self.dispersion * self.rate_rps)

    @property
    def total_rps(self) -> float:
        """Rate and extra, without the headroom, which the solver adds."""
        return self.rate_rps + self.extra_rps


def fast_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> Demand:
    """The fast loop's demand: the newest rate, its growth during an in-place change, and the backlog within `backlog_drain_s`.

    Arrivals of the last `backlog_slack_s` may wait: a work-conserving batcher forms batches of them. Where an in-place change takes
    longer than a tick, random fluctuation has moved on before it acts: then at least the stable rate with
    `slow_actuation_headroom_sigmas` is carried, and a backlog is drained no faster than the actuator acts.
    """
    growth = beyond_noise(estimate.growth_rps_per_s, estimate.recent_rps, policy.demand.growth_window_s, policy.demand.growth_sigmas)
    waiting = backlog_of(estimate, policy)
    slow = actuation_s > policy.tick_s
    extra_rps = growth * (actuation_s + policy.tick_s) + waiting / max(policy.demand.backlog_drain_s, actuation_s if slow else 0.0)
    dispersion, other_rps = _dispersion(estimate, policy), recent_others(estimate)
    newest = Demand(estimate.recent_rps, extra_rps, dispersion, policy.demand.headroom_sigmas, other_rps=other_rps)
    stable = Demand(estimate.stable_rps, extra_rps, dispersion, policy.demand.slow_actuation_headroom_sigmas, other_rps=other_rps)
    return max(newest, stable, key=Demand.with_headroom_rps) if slow else newest


def backlog_of(estimate: PipelineEstimate, policy: PolicyConfig) -> float:
    """Waiting requests beyond the arrivals of `backlog_slack_s`."""
    return max(0.0, estimate.backlog - policy.demand.backlog_slack_s * estimate.recent_rps)


def surge_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float, capacity_rps: float) -> Demand:
    """The demand of a whole surge, for a growth that cannot be corrected before the backlog is gone.

    The newest rate with room for `burst_headroom_factor`, its growth while the change takes effect, and the backlog of that moment.
    """
    rate_rps = max(estimate.recent_rps, estimate.newest_rps)
    growth = beyond_noise(estimate.growth_rps_per_s, estimate.recent_rps, policy.demand.growth_window_s, policy.demand.growth_sigmas)
    waiting = backlog_of(estimate, policy) + max(0.0, rate_rps - capacity_rps) * actuation_s
    extra_rps = growth * (actuation_s + policy.tick_s) + waiting / max(policy.demand.backlog_drain_s, actuation_s)
    return Demand(
        rate_rps * policy.scale_up.burst_headroom_factor,
        extra_rps,
        _dispersion(estimate, policy),
        policy.demand.headroom_sigmas,
        other_rps=recent_others(estimate),
    )


def launch_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float, *, within_reach: bool = False) -> Demand:
    """The demand that servers must carry at their largest instance counts once a server launched now serves, in `actuation_s`.

    The newest rate, or the trend's if larger; of the backlog, what instances do not drain until then. `within_reach`: running servers
    can take a further device in time for a rise that lasts, so that the newest rate counts only where chance does not explain it from
    the mean of the trend window's newer half, and that mean otherwise.
    """
    waiting = backlog_of(estimate, policy)
    extra_rps = waiting / max(actuation_s, policy.demand.backlog_drain_s)
    newest_rps, mean_rps, dispersion = estimate.recent_rps, estimate.trend_base_rps, _dispersion(estimate, policy)
    if within_reach and newest_rps - mean_rps < policy.demand.trend_sigmas * math.sqrt(dispersion * mean_rps):
        newest_rps = mean_rps
    rate_rps = max(newest_rps, trend_rps(estimate, policy, actuation_s))
    return Demand(rate_rps, extra_rps, dispersion, policy.demand.headroom_sigmas, other_rps=stable_others(estimate))


def trend_rps(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> float:
    """The rate that the trend reaches during an actuation, at most twice the present one; 0 where random fluctuation explains the trend."""
    # A longer extrapolation needs more certainty, and bursts cause slopes that a Poisson stream does not.
    sigmas = policy.demand.trend_sigmas * math.sqrt(
        _dispersion(estimate, policy) * max(1.0, actuation_s / (2.0 * policy.demand.trend_window_s))
    )
    trend = beyond_noise(estimate.trend_rps_per_s, estimate.trend_base_rps, policy.demand.trend_window_s, sigmas)
    if trend <= 0.0:
        return 0.0
    # The newer half's mean lies half a window in the past.
    reached_rps = estimate.trend_base_rps + trend * (actuation_s + policy.tick_s + policy.demand.trend_window_s / 2.0)
    return min(reached_rps, policy.demand.max_trend_factor * estimate.trend_base_rps)


def slow_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float, forecaster: Forecaster) -> Demand:
    """The slow loop's demand: the stable rate, or the forecast for the launch of a server if larger."""
    forecast_rps = 0.0
    if policy.demand.forecast is not ForecastName.NONE and estimate.per_second:
        forecast_rps = forecaster.rate(
            policy.demand.forecast, estimate.per_second, actuation_s + policy.tick_s, policy.demand.forecast_quantile
        )
    rate_rps, sigmas = max(estimate.stable_rps, forecast_rps), policy.demand.server_headroom_sigmas
    return Demand(rate_rps, 0.0, _dispersion(estimate, policy), sigmas, other_rps=stable_others(estimate))


def beyond_noise(slope: float, rate_rps: float, half_window_s: float, sigmas: float) -> float:
    """A slope (requests/s per s) less the noise of the difference of two consecutive window means of a Poisson stream."""
    noise = math.sqrt(2.0 * max(rate_rps, 1.0) / half_window_s) / half_window_s
    return max(0.0, slope - sigmas * noise)


def survivor_demand(estimate: PipelineEstimate, policy: PolicyConfig) -> Demand:
    """The demand that the remaining servers of a scale-in must carry: the largest rate of all time scales with its margin."""
    largest_rps = max(estimate.stable_rps, estimate.burst_rps, estimate.recent_rps)
    margin = 1.0 + policy.scale_down.survivor_margin_fraction
    return Demand(
        largest_rps * margin,
        0.0,
        _dispersion(estimate, policy),
        policy.demand.server_headroom_sigmas,
        other_rps=tuple(margin * rps for rps in largest_others(estimate)),
    )


def burst_demand(estimate: PipelineEstimate, policy: PolicyConfig) -> Demand:
    """The largest one-second rate of the burst window, for policies without a fast loop."""
    sigmas = policy.demand.headroom_sigmas
    return Demand(estimate.burst_rps, 0.0, _dispersion(estimate, policy), sigmas, other_rps=largest_others(estimate))


def recent_others(estimate: PipelineEstimate) -> tuple[float, ...]:
    """What reached each stage lately besides the pipeline's own requests."""
    return tuple([sum([part.recent_rps for part in parts]) for parts in estimate.others])


def stable_others(estimate: PipelineEstimate) -> tuple[float, ...]:
    """What reaches each stage in the stable window besides the pipeline's own requests."""
    return tuple([sum([part.stable_rps for part in parts]) for parts in estimate.others])


def largest_others(estimate: PipelineEstimate) -> tuple[float, ...]:
    """The larger of the two."""
    return tuple(map(max, zip(recent_others(estimate), stable_others(estimate), strict=True)))


def _dispersion(estimate: PipelineEstimate, policy: PolicyConfig) -> float:
    """At least that of a Poisson stream: a short sample may look smoother by chance."""
    return min(max(estimate.dispersion, 1.0), policy.demand.max_dispersion)
