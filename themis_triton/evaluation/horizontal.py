"""Horizontal only: the baseline that starts and stops servers, each with the same, most economical instance counts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.core.price import fleet_price
from themis_triton.decide.demand import Demand
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, launch_models, server_models, to_launch
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand, batch_limits, scaled_in
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The joint plan with fixed instances, every tick; servers retire after the stabilization window."""
    policy = view.rules.config.policy
    instances = state.fixed_instances or efficient_instances(view.problem, policy.horizontal.instances)
    demand = baseline_demand(view)
    joint = view.joint(demand, instances=instances)
    desired = view.servers_of(joint.stages) if joint.feasible else view.max_servers_by_group
    state, retire = scaled_in(replace(state, fixed_instances=instances), view, desired, policy.horizontal.scale_in_stabilization_s)
    return PolicyResult(state, fleet_proposal(view, FleetTarget(demand, instances, joint, desired, retire)))


@dataclass(frozen=True, slots=True)
class FleetTarget:
    """Servers to have a group, with so many instances a stage, and those to retire. `joint`: the plan with these instances."""

    demand: Demand
    instances: tuple[int, ...]
    joint: ChainPlan
    desired: tuple[int, ...]
    retire: tuple[str, ...]


def fleet_proposal(view: PipelineView, target: FleetTarget) -> Proposal:
    """The proposal of a policy that only starts and stops servers."""
    launch, sizes = to_launch(view, target.desired), view.sizes(target.instances, batch_limits(view, target.joint.stages))
    steady = Reason.STEADY if target.joint.feasible else Reason.INFEASIBLE
    p99_ms = target.joint.predicted_p99_ms
    return Proposal(
        servers=server_models(view, sizes),
        stage=Stage.OPTIMISE,
        reason=Reason.SCALE_OUT if any(launch) else Reason.SCALE_IN if target.retire else steady,
        evidence=evidence_of(view, target.demand, target.demand, desired=target.desired, predicted_p99_ms=p99_ms),
        launch=launch,
        launch_models=launch_models(view, sizes),
        retire=target.retire,
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


def fixed_instances(policy: PolicyConfig, problem: ChainProblem) -> tuple[int, ...]:
    """The counts that each server has."""
    return efficient_instances(problem, policy.horizontal.instances)


HORIZONTAL = Policy(PolicyName.HORIZONTAL, propose, fixed_instances=fixed_instances)
