"""What must be carried: measured rate, growth over the time that a actuator takes, and the backlog that must drain."""

from __future__ import annotations

import math
from dataclasses import dataclass

from themis_triton.core.estimate import PipelineEstimate
from themis_triton.core.policy import ForecastName, PolicyConfig
from themis_triton.forecast.forecast import forecast_rate


@dataclass(frozen=True, slots=True)
class Demand:
    """An arrival rate, the extra capacity that must come on top (requests/s), the index of dispersion, and headroom for chance.

    The headroom is in standard deviations of a second's arrivals. `exact`: plans are for this very demand, without rounding up.
    """

    rate_rps: float
    extra_rps: float
    dispersion: float
    sigmas: float
    exact: bool = False

    def wanted_rps(self) -> float:
        """With the headroom for chance."""
        return self.total_rps + self.sigmas * math.sqrt(self.dispersion * self.rate_rps)

    @property
    def total_rps(self) -> float:
        """Rate and extra, without the headroom for chance that the solver adds."""
        return self.rate_rps + self.extra_rps


def fast_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> Demand:
    """For the fast loop: the newest rate, its growth over the in-place actuator's own time, and the backlog drained in `backlog_drain_s`.

    What arrived in the last `backlog_slack_s` may wait: a work-conserving batcher forms its batches of it. Where the actuator takes longer
    than a tick, chance has moved on by the time that it acts: then the settled rate with `slow_actuation_headroom_sigmas` is carried
    at the least, and a backlog is drained no faster than the actuator acts.
    """
    growth = beyond_noise(estimate.growth_rps_per_s, estimate.recent_rps, policy.demand.growth_window_s, policy.demand.growth_sigmas)
    waiting = max(0.0, estimate.backlog - policy.demand.backlog_slack_s * estimate.recent_rps)
    slow = actuation_s > policy.tick_s
    extra_rps = growth * (actuation_s + policy.tick_s) + waiting / max(policy.demand.backlog_drain_s, actuation_s if slow else 0.0)
    newest = Demand(estimate.recent_rps, extra_rps, _dispersion(estimate, policy), policy.demand.headroom_sigmas)
    lasting = Demand(estimate.settled_rps, extra_rps, _dispersion(estimate, policy), policy.demand.slow_actuation_headroom_sigmas)
    return max(newest, lasting, key=Demand.wanted_rps) if slow else newest


def launch_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> Demand:
    """What servers must be able to carry with all their instances by the time that one started now serves, in `actuation_s`.

    The newest rate, or the trend's where it leads further; of what waits, only what instances would not have worked off by then.
    """
    waiting = max(0.0, estimate.backlog - policy.demand.backlog_slack_s * estimate.recent_rps)
    extra_rps = waiting / max(actuation_s, policy.demand.backlog_drain_s)
    return Demand(
        max(estimate.recent_rps, trend_rps(estimate, policy, actuation_s)),
        extra_rps,
        _dispersion(estimate, policy),
        policy.demand.headroom_sigmas,
    )


def trend_rps(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> float:
    """The rate to which the last seconds' trend leads while a actuator of so long works; 0 where chance explains the trend."""
    # What a longer actuator multiplies must be surer, and bursts make slopes that a Poisson stream does not.
    sigmas = policy.demand.trend_sigmas * math.sqrt(
        _dispersion(estimate, policy) * max(1.0, actuation_s / (2.0 * policy.demand.trend_window_s))
    )
    trend = beyond_noise(estimate.trend_rps_per_s, estimate.trend_base_rps, policy.demand.trend_window_s, sigmas)
    # The newer half's mean lies half a window in the past.
    return estimate.trend_base_rps + trend * (actuation_s + policy.tick_s + policy.demand.trend_window_s / 2.0) if trend > 0 else 0.0


def slow_demand(estimate: PipelineEstimate, policy: PolicyConfig, actuation_s: float) -> Demand:
    """For the slow loop's cheapest plan: the settled rate, or a forecast of more while a server starts."""
    foreseen_rps = 0.0
    if policy.demand.forecast is not ForecastName.NONE and estimate.per_second:
        foreseen_rps = forecast_rate(
            policy.demand.forecast, estimate.per_second, actuation_s + policy.tick_s, policy.demand.forecast_quantile
        )
    return Demand(max(estimate.settled_rps, foreseen_rps), 0.0, _dispersion(estimate, policy), policy.demand.server_headroom_sigmas)


def beyond_noise(slope: float, rate_rps: float, half_window_s: float, sigmas: float) -> float:
    """A slope (requests/s per s) less what chance explains: it is the difference of two means of a Poisson stream, a half window apart."""
    noise = math.sqrt(2.0 * max(rate_rps, 1.0) / half_window_s) / half_window_s
    return max(0.0, slope - sigmas * noise)


def survivor_demand(estimate: PipelineEstimate, policy: PolicyConfig) -> Demand:
    """What the survivors of a scale-in must carry: the largest rate at any of the time scales, and a margin on it."""
    largest_rps = max(estimate.settled_rps, estimate.peak_rps, estimate.recent_rps)
    return Demand(
        largest_rps * (1.0 + policy.scale_down.survivor_margin_fraction),
        0.0,
        _dispersion(estimate, policy),
        policy.demand.server_headroom_sigmas,
    )


def peak_demand(estimate: PipelineEstimate, policy: PolicyConfig) -> Demand:
    """The largest second of the peak window, for policies without a fast loop."""
    return Demand(estimate.peak_rps, 0.0, _dispersion(estimate, policy), policy.demand.headroom_sigmas)


def _dispersion(estimate: PipelineEstimate, policy: PolicyConfig) -> float:
    """That of a Poisson stream at the least: a few seconds may look smoother by chance."""
    return min(max(estimate.dispersion, 1.0), policy.demand.max_dispersion)
