"""Static: the baseline that plans once, for the greatest rate that it is told of, and never changes anything."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.decision import Reason, Stage
from themis_triton.decide.demand import Demand
from themis_triton.decide.horizontal import efficient_instances
from themis_triton.decide.paper import baseline_demand
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, to_launch
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """Keep the fleet of the plan for `planned_rps`; without one, what is found, or else all the servers that there can be."""
    state = state if state.fixed_servers else _fixed(state, view)
    launch, demand = to_launch(view, state.fixed_servers), baseline_demand(view)
    return PolicyResult(
        state,
        Proposal(
            instances=state.fixed_instances,
            batches=view.batch_caps,
            stage=Stage.OPTIMISE,
            reason=Reason.SCALE_OUT if any(launch) else Reason.STEADY,
            evidence=evidence_of(view, demand, demand, wanted=state.fixed_servers, predicted_p99_ms=None),
            launch=launch,
            launch_instances=state.fixed_instances,
            exact_batches=view.sets_batches,
        ),
    )


def _fixed(state: PipelineState, view: PipelineView) -> PipelineState:
    policy = view.rules.config.policy
    if policy.planned_rps is not None:
        plan = view.joint(Demand(policy.planned_rps, 0.0, 1.0, policy.demand.headroom_sigmas, exact=True))
        servers, instances = view.servers_of(plan), tuple(stage.instances for stage in plan.stages)
        return replace(state, fixed_servers=servers if plan.feasible else view.max_servers_by_group, fixed_instances=instances)
    if view.serves:
        return replace(state, fixed_servers=view.ready, fixed_instances=view.instances_now)
    return replace(
        state, fixed_servers=view.max_servers_by_group, fixed_instances=efficient_instances(view.problem, policy.horizontal.instances)
    )
