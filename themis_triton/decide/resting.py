"""Pipelines of large fleets that rest: what was proposed to leave as it is stays so while nothing that matters to it changes.

With more than `PROPOSALS_A_TICK` pipelines a steady one is proposed anew once in a few ticks, and at once when its servers, its service
times or what is free for it change, when requests wait, or when its demand rises.
"""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.decision import Reason
from themis_triton.core.fleet import Models
from themis_triton.decide.demand import Demand, backlog_of, fast_demand
from themis_triton.decide.proposal import PolicyResult, Proposal
from themis_triton.decide.slow_target import Circumstances
from themis_triton.decide.state import PipelineState, Resting
from themis_triton.decide.view import PipelineView

PROPOSALS_A_TICK = 100
"""Steady pipelines that are proposed anew in a tick; fleets of no more pipelines have none that rest."""
RISE_FACTOR = 1.05
"""A demand that exceeds by this factor the one for which a pipeline came to rest is planned at once."""


def is_due(number: int, pipelines: int, ticks: int) -> bool:
    """Whether a pipeline is proposed anew in this tick, steady or not."""
    rounds = max(1, -(-pipelines // PROPOSALS_A_TICK))
    return (ticks + number) % rounds == 0


def resting(state: PipelineState, view: PipelineView) -> PolicyResult | None:
    """The result for a pipeline that rests, with the numbers of this tick; None where it does not rest any more."""
    if state.resting is None or view.in_turn or view.open_calls or view.crowded:
        return None
    fast = _demand(view)
    if fast.with_headroom_rps() > view.capacity_rps or backlog_of(view.estimate, view.rules.config.policy) > 0.0:
        return None
    if not _circumstances(view, fast).hardly_differ_from(state.resting.since, RISE_FACTOR):
        return None
    measured = view.estimate.p99_ms
    evidence = replace(state.resting.evidence, demand_fast_rps=fast.total_rps, capacity_rps=view.capacity_rps, measured_p99_ms=measured)
    proposal = Proposal(
        servers=_running(view),
        stage=state.resting.stage,
        reason=Reason.STEADY,
        evidence=evidence,
        launch=(0,) * len(view.groups),
        launch_models=state.resting.launch_models,
        detail=state.resting.detail,
    )
    return PolicyResult(state, proposal)


def with_rest(result: PolicyResult, view: PipelineView) -> PolicyResult:
    """The result, and that the pipeline rests from now on where it is left as it is."""
    proposal = result.proposal
    changes = any(proposal.launch) or proposal.extend or proposal.retire or any(view.coming) or proposal.servers != _running(view)
    if changes or proposal.reason is not Reason.STEADY:
        return replace(result, state=replace(result.state, resting=None))
    since = _circumstances(view, _demand(view))
    rest = Resting(since, proposal.stage, proposal.evidence, proposal.launch_models, proposal.detail)
    return replace(result, state=replace(result.state, resting=rest))


def _demand(view: PipelineView) -> Demand:
    return fast_demand(view.estimate, view.rules.config.policy, view.rules.init_s(view.pipeline) + view.age_s)


def _running(view: PipelineView) -> dict[str, Models]:
    """What runs at the ready places, of the pipeline's models."""
    return {place.name: {name: place.models[name] for name in group.names} for group in view.groups for place in group.ready}


def _circumstances(view: PipelineView, fast: Demand) -> Circumstances:
    running = tuple((place.name, tuple(place.models[name] for name in group.names)) for group in view.groups for place in group.ready)
    corrections = tuple(view.models[stage].correction if stage in view.models else 1.0 for stage in view.pipeline.stages)
    room = (view.reachable, view.free_slots > 0, view.within_reach)
    equal = (view.pipeline, running, view.coming, room, view.busy_elsewhere, corrections, view.estimate.sizes, view.estimate.due_rise)
    return Circumstances(equal, (fast.with_headroom_rps(), sum(fast.other_rps)))
