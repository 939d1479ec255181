"""Vertical only: the baseline that keeps a fixed number of servers and moves only instances in place."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyName
from themis_triton.decide.demand import Demand, fast_demand
from themis_triton.decide.policy import Load, Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, grows, launch_models, server_models, to_launch
from themis_triton.decide.state import DemandSample, PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand, batch_limits
from themis_triton.evaluation.starts import start_for_peak
from themis_triton.solver.plans import instances_of


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The vertical plan every tick on `vertical.servers` servers.

    By default on those that `vertical.planned_rps` needs, else on as many as can exist; where stages are separate, on those that are
    ready at the start. Where a dispatcher sets batches, the demand is the published evaluation's, else the fast loop's.
    """
    policy = view.rules.config.policy
    state = replace(state, fixed_servers=state.fixed_servers or fixed_servers(view))
    fast = (
        baseline_demand(view)
        if view.rules.dispatcher_sets_batches
        else fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    )
    plan = view.vertical(fast, tuple(max(1, ready) for ready in view.ready))
    sample = DemandSample(view.at_s, instances_of(plan.plan.stages), view.ready)
    state = state.with_sample(sample, policy.scale_down.shrink_stabilization_s)
    instances, launch = state.max_instances_needed(), to_launch(view, state.fixed_servers)
    growing, sizes = grows(view, instances), view.sizes(instances, batch_limits(view, plan.plan.stages))
    reason = Reason.SCALE_OUT if any(launch) else Reason.SURGE if growing else Reason.STEADY if plan.feasible else Reason.INFEASIBLE
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, sizes),
            stage=Stage.ABSORB if growing else Stage.OPTIMISE,
            reason=reason,
            evidence=evidence_of(view, fast, fast, desired=state.fixed_servers, predicted_p99_ms=plan.plan.predicted_p99_ms),
            launch=launch,
            launch_models=launch_models(view, sizes),
        ),
    )


def fixed_servers(view: PipelineView) -> tuple[int, ...]:
    """The servers of each group that are kept, whatever the load."""
    policy = view.rules.config.policy
    if policy.vertical.servers is not None:
        return tuple(min(policy.vertical.servers, limit) for limit in view.max_servers_by_group)
    if policy.vertical.planned_rps is not None:
        return view.fewest_servers(Demand(policy.vertical.planned_rps, 0.0, 1.0, policy.demand.headroom_sigmas, exact=True))
    return view.ready if view.serves and view.rules.config.planning.placement is Placement.SEPARATE else view.max_servers_by_group


def _first_servers(config: ThemisConfig, load: Load) -> tuple[Models, ...] | None:
    return start_for_peak(config, load.peak_rps) if config.planning.placement is Placement.SEPARATE else None


VERTICAL = Policy(PolicyName.VERTICAL, propose, fixed_servers=True, first_servers=_first_servers)
