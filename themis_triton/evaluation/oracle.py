"""Delayed oracle: the reference that knows all arrivals in advance, and acts through the real actuators, which take their time.

What it lacks to the clairvoyant reference is the price of slow actuators; what policies lack to it is the price of not knowing the future.
"""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyName
from themis_triton.decide.demand import Demand, backlog_of, recent_others, stable_others
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, grows, launch_models, leaving, server_models
from themis_triton.decide.slow_target import SlowTarget
from themis_triton.decide.state import PipelineState
from themis_triton.decide.themis_servers import new_places
from themis_triton.decide.view import PipelineView
from themis_triton.solver.plans import batches_of, instances_of

WARM_UP_S = 1.0
"""Time beyond its cold start after which a new server is in the routes."""


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The cheapest plan for the largest rate until each actuator takes effect."""
    fast, slow = _demand(view, _in_place_s(view), fast=True), _demand(view, _lead_s(view), fast=False)
    joint = view.joint(slow)
    desired = view.servers_of(joint.stages) if joint.feasible else view.max_servers_by_group
    now = view.in_place(fast, view.ready) if view.serves else None
    extend, launch = new_places(view, now, SlowTarget(desired, joint, None, desired, rises=True, lasting=desired), may_grow=True)
    retire = () if extend or any(launch) else leaving(view, desired)
    if retire and all(view.without(retire)):
        now = view.in_place(fast, view.without(retire))
        # The others grow first.
        retire = retire if now.feasible and not grows(view, instances_of(now.stages)) else ()
    batches = view.batch_caps if not view.rules.dispatcher_sets_batches else batches_of((now or joint).stages)
    sizes = view.sizes_now if now is None else tuple(replace(size, batch=b) for size, b in zip(now.stages, batches, strict=True))
    new = instances_of(view.in_place(max(fast, slow, key=Demand.with_headroom_rps), desired).stages)
    p99_ms = now.predicted_p99_ms if now is not None else joint.predicted_p99_ms
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, sizes, retire=retire),
            stage=Stage.OPTIMISE,
            reason=_reason(joint.feasible, launch, extend, retire),
            evidence=evidence_of(view, fast, slow, desired=desired, predicted_p99_ms=p99_ms),
            launch=launch,
            extend=extend,
            launch_models=launch_models(view, view.sizes(new, batches)),
            retire=retire,
        ),
    )


def _in_place_s(view: PipelineView) -> float:
    """How long a growth takes, after the removal that it may have to wait for."""
    stages = [view.rules.config.models[stage].profile for stage in view.pipeline.stages]
    return max(stage.instance_init_s + stage.instance_stop_s for stage in stages) + view.rules.config.policy.tick_s


def _lead_s(view: PipelineView) -> float:
    """How long a new place takes."""
    return _in_place_s(view) if view.reachable else view.rules.launch_s(view.pipeline) + view.rules.init_s(view.pipeline) + WARM_UP_S


def _demand(view: PipelineView, until_s: float, *, fast: bool) -> Demand:
    """The largest rate until then, or the present one where nothing is known, and for instances the backlog."""
    known, policy, estimate = view.planner.forecaster.known, view.rules.config.policy, view.estimate
    window_s = policy.demand.rate_window_s if fast else policy.demand.stable_window_s
    rate_rps = estimate.recent_rps if fast else estimate.stable_rps
    if known is not None:
        rate_rps = known.largest_rps(view.pipeline.name, view.at_s, view.at_s + until_s, window_s)
    waiting = backlog_of(estimate, policy) if fast else 0.0
    others = recent_others(estimate) if fast else stable_others(estimate)
    sigmas = policy.demand.headroom_sigmas if fast else policy.demand.server_headroom_sigmas
    return Demand(rate_rps, waiting / policy.demand.backlog_drain_s, 1.0, sigmas, other_rps=others)


def _reason(feasible: bool, launch: tuple[int, ...], extend: int, retire: tuple[str, ...]) -> Reason:
    if any(launch):
        return Reason.SCALE_OUT
    if extend:
        return Reason.SURGE
    if retire:
        return Reason.SCALE_IN
    return Reason.STEADY if feasible else Reason.INFEASIBLE


ORACLE = Policy(PolicyName.ORACLE, propose, waits_for_batches=False)
