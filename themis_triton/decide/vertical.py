"""Vertical only: the baseline that keeps a fixed number of servers and moves only instances in place."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.decide.demand import fast_demand
from themis_triton.decide.paper import baseline_demand
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, grows, to_launch
from themis_triton.decide.state import DemandSample, PipelineState
from themis_triton.decide.view import PipelineView


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The vertical plan every tick on `vertical_servers` servers.

    By default all that can exist; where stages are separate, those that it finds. Where batches are set as planned, demand is the
    published evaluation's, else the fast loop's.
    """
    policy = view.rules.config.policy
    state = replace(state, fixed_servers=state.fixed_servers or _servers(view))
    fast = baseline_demand(view) if view.sets_batches else fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    plan = view.vertical(fast, tuple(max(1, ready) for ready in view.ready))
    sample = DemandSample(view.at_s, tuple(stage.instances for stage in plan.plan.stages), view.ready)
    state = state.with_sample(sample, policy.scale_down.shrink_stabilization_s)
    instances, launch = state.max_instances_needed(), to_launch(view, state.fixed_servers)
    growing = grows(view, instances)
    reason = Reason.SCALE_OUT if any(launch) else Reason.SURGE if growing else Reason.STEADY if plan.feasible else Reason.INFEASIBLE
    return PolicyResult(
        state,
        Proposal(
            instances=instances,
            batches=tuple(stage.batch for stage in plan.plan.stages) if view.sets_batches else view.batch_caps,
            stage=Stage.ABSORB if growing else Stage.OPTIMISE,
            reason=reason,
            evidence=evidence_of(view, fast, fast, wanted=state.fixed_servers, predicted_p99_ms=plan.plan.predicted_p99_ms),
            launch=launch,
            launch_instances=instances,
            exact_batches=view.sets_batches,
        ),
    )


def _servers(view: PipelineView) -> tuple[int, ...]:
    told = view.rules.config.policy.vertical.servers
    if told is not None:
        return tuple(min(told, most) for most in view.max_servers_by_group)
    return view.ready if view.serves and view.rules.config.planning.placement is Placement.SEPARATE else view.max_servers_by_group
