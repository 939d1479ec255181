"""What the policies of the published evaluation share: its constants, its demand, and when replicas leave."""

from __future__ import annotations

import math
from dataclasses import replace

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.core.policy import (
    DemandConfig,
    DriftConfig,
    ForecastName,
    HorizontalConfig,
    PolicyConfig,
    PolicyName,
    QueueingModel,
    ScaleDownConfig,
    ScaleUpConfig,
    ThemisPaperConfig,
)
from themis_triton.decide.demand import Demand, peak_demand
from themis_triton.decide.proposal import leaving
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView

INFERLINE_PEAK_S = 30.0
AT_ONCE = 1_000_000


def has_published_rules(policy: PolicyName, placement: Placement) -> bool:
    """Whether a policy runs by the published constants where a settings file does not name its own: a baseline of separate stages."""
    return policy is not PolicyName.THEMIS and placement is Placement.SEPARATE


def published(policy: PolicyName) -> PolicyConfig:
    """A baseline's constants in the published evaluation (A Tale of Two Scales).

    Decisions every 0.5 s for the largest of the last 5 s (inferline: 30 s) and its square root, waits of exponential gaps, the whole
    SLO, one core a replica unless a policy says otherwise, scale-in after 10 s, in-place changes at once and all together.
    """
    return PolicyConfig(
        name=policy,
        tick_s=0.5,
        queueing=QueueingModel.EXPONENTIAL,
        slo_margin_fraction=0.0,
        demand=DemandConfig(
            headroom_sigmas=1.0,
            server_headroom_sigmas=1.0,
            growth_sigmas=1.0,
            trend_sigmas=1.0,
            burst_window_s=INFERLINE_PEAK_S if policy is PolicyName.INFERLINE else 5.0,
            forecast=ForecastName.LINEAR,
        ),
        scale_up=ScaleUpConfig(max_added_instances=AT_ONCE),
        scale_down=ScaleDownConfig(shrink_stabilization_s=0.0),
        drift=DriftConfig(max_factor=1.0),
        horizontal=HorizontalConfig(instances=1),
        themis_paper=ThemisPaperConfig(instances=1),
    )


def paper_rules(config: ThemisConfig, policy: PolicyName, planned_rps: float | None = None) -> ThemisConfig:
    """The settings under `policy`, by the published constants where it has those and none of its own; `planned_rps` unless it is told."""
    told = config.under(policy).policy
    if policy not in config.policies and has_published_rules(policy, config.planning.placement):
        told = published(policy)
    return replace(config, policy=told.planning_for(told.planned_rps or planned_rps))


def baseline_demand(view: PipelineView) -> Demand:
    """The largest second of the peak window; in whole requests, and as if arrivals were Poisson, where batches are set as planned."""
    policy = view.rules.config.policy
    if not view.sets_batches:
        return peak_demand(view.estimate, policy)
    return Demand(float(math.ceil(view.estimate.peak_rps - 1e-6)), 0.0, 1.0, policy.demand.headroom_sigmas, exact=True)


def scaled_in(state: PipelineState, view: PipelineView, wanted: tuple[int, ...]) -> tuple[PipelineState, tuple[str, ...]]:
    """Who leaves: what is more than now wanted, once every answer of the last `baseline_stabilization_s` wanted fewer than there are."""
    hold_s = view.rules.config.policy.baseline_stabilization_s
    state = state.with_wanted(view.at_s, wanted, hold_s)
    if state.covered_s(view.at_s) < hold_s:
        return state, ()
    agreed = (most < ready for most, ready in zip(state.max_wanted(), view.ready, strict=True))
    return state, leaving(view, tuple(now if all_ else ready for all_, now, ready in zip(agreed, wanted, view.ready, strict=True)))
