"""Horizontal only: the baseline that starts and stops servers, each with the same, most economical instance counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.core.price import fleet_price
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, launch_models, server_models, to_launch
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand, batch_limits, scaled_in
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The joint plan with fixed instances, every tick; servers retire after the stabilization window."""
    policy = view.rules.config.policy
    instances = state.fixed_instances or efficient_instances(view.problem, policy.horizontal.instances)
    demand = baseline_demand(view)
    joint = view.joint(demand, instances=instances)
    desired = view.servers_of(joint.stages) if joint.feasible else view.max_servers_by_group
    launch, sizes = to_launch(view, desired), view.sizes(instances, batch_limits(view, joint.stages))
    state, retire = scaled_in(replace(state, fixed_instances=instances), view, desired, policy.horizontal.scale_in_stabilization_s)
    reason = Reason.SCALE_OUT if any(launch) else Reason.SCALE_IN if retire else Reason.STEADY if joint.feasible else Reason.INFEASIBLE
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, sizes),
            stage=Stage.OPTIMISE,
            reason=reason,
            evidence=evidence_of(view, demand, demand, desired=desired, predicted_p99_ms=joint.predicted_p99_ms),
            launch=launch,
            launch_models=launch_models(view, sizes),
            retire=retire,
        ),
    )


def efficient_instances(problem: ChainProblem, fixed: int | None) -> tuple[int, ...]:
    """The counts that carry the most requests inside the SLO for their price, on one server (a stage); `fixed` is one count for all."""
    stages = problem.stages
    if fixed is not None:
        return tuple(min(max(fixed, stage.min_instances), stage.max_instances) for stage in stages)
    price = stages[0].server_price if problem.placement is Placement.COLOCATED else sum(stage.server_price for stage in stages)

    def value(counts: tuple[int, ...]) -> float:
        cost = fleet_price([(price, [(c, stage.instance_price) for c, stage in zip(counts, stages, strict=True)])])
        return largest_demand(problem, 1, instances=counts, max_rate_rps=100_000.0) / cost

    return max(product(*(range(s.min_instances, s.max_instances + 1) for s in stages)), key=value)


def _fixed(policy: PolicyConfig, problem: ChainProblem) -> tuple[int, ...]:
    return efficient_instances(problem, policy.horizontal.instances)


HORIZONTAL = Policy(PolicyName.HORIZONTAL, propose, fixed_instances=_fixed)
