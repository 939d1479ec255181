"""What the baselines share: their demand, and when they retire servers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from themis_triton.decide.demand import Demand, burst_demand, largest_others
from themis_triton.decide.proposal import leaving
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.solver.plans import StageSize, batches_of


def baseline_demand(view: PipelineView) -> Demand:
    """The largest one-second rate of the burst window.

    Where a dispatcher sets batches: in whole requests, and with the headroom of Poisson arrivals.
    """
    policy = view.rules.config.policy
    if not view.rules.dispatcher_sets_batches:
        return burst_demand(view.estimate, policy)
    burst_rps, other_rps = float(math.ceil(view.estimate.burst_rps - 1e-6)), largest_others(view.estimate)
    return Demand(burst_rps, 0.0, 1.0, policy.demand.headroom_sigmas, exact=True, other_rps=other_rps)


def batch_limits(view: PipelineView, planned: Sequence[StageSize]) -> tuple[int, ...]:
    """The planned batches where a dispatcher sets them, else the servers' limits."""
    return batches_of(planned) if view.rules.dispatcher_sets_batches else view.batch_caps


def scaled_in(
    state: PipelineState, view: PipelineView, desired: tuple[int, ...], stabilization_s: float
) -> tuple[PipelineState, tuple[str, ...]]:
    """The servers to retire: those beyond `desired`, once every count desired in the stabilization window was below the ready servers."""
    state = state.with_desired(view.at_s, desired, stabilization_s)
    if state.covered_s(view.at_s) < stabilization_s:
        return state, ()
    agreed = (largest < ready for largest, ready in zip(state.max_desired(), view.ready, strict=True))
    return state, leaving(view, tuple(now if agree else ready for agree, now, ready in zip(agreed, desired, view.ready, strict=True)))
