"""What must be carried: measured rate, growth over the time that a lever takes, and the backlog that must drain."""

from __future__ import annotations

import math
from dataclasses import dataclass

from themis_triton.core.config import PolicyConfig
from themis_triton.core.estimate import PipelineEstimate

GROWTH_SIGMAS = 1.5
GROWTH_HALF_WINDOW_S = 2.0
DISPERSION_RANGE = (1.0, 3.0)


@dataclass(frozen=True, slots=True)
class Demand:
    """An arrival rate, the extra capacity that must come on top (requests/s), and the index of dispersion."""

    rate_rps: float
    extra_rps: float
    dispersion: float

    @property
    def total_rps(self) -> float:
        """Rate and extra, without the statistical headroom that the solver adds."""
        return self.rate_rps + self.extra_rps


def growth_beyond_noise(estimate: PipelineEstimate) -> float:
    """Growth (requests/s per s) less what chance alone explains: the difference of two Poisson means over the half window."""
    noise = math.sqrt(2.0 * max(estimate.settled_rps, estimate.recent_rps, 1.0) / GROWTH_HALF_WINDOW_S) / GROWTH_HALF_WINDOW_S
    return max(0.0, estimate.growth_rps_per_s - GROWTH_SIGMAS * noise)


def fast_demand(estimate: PipelineEstimate, policy: PolicyConfig, lever_s: float) -> Demand:
    """For the fast loop: the newest rate, its growth over the in-place lever's own time, and the backlog drained in `backlog_drain_s`."""
    growth_rps = growth_beyond_noise(estimate) * (lever_s + policy.tick_s)
    return Demand(estimate.recent_rps, growth_rps + estimate.backlog / policy.backlog_drain_s, _dispersion(estimate))


def slow_demand(estimate: PipelineEstimate, policy: PolicyConfig, lever_s: float) -> Demand:
    """For the slow loop: the settled rate, or the newest one with its growth over a cold start, whichever is more."""
    ahead_rps = estimate.recent_rps + growth_beyond_noise(estimate) * (lever_s + policy.tick_s)
    rising = ahead_rps > estimate.recent_rps
    return Demand(max(estimate.settled_rps, ahead_rps if rising else 0.0), 0.0, _dispersion(estimate))


def survivor_demand(estimate: PipelineEstimate) -> Demand:
    """What the survivors of a scale-in must carry: the largest rate at any of the time scales."""
    return Demand(max(estimate.settled_rps, estimate.peak_rps, estimate.recent_rps), 0.0, _dispersion(estimate))


def _dispersion(estimate: PipelineEstimate) -> float:
    low, high = DISPERSION_RANGE
    return min(max(estimate.dispersion, low), high)
