"""Static: the baseline that plans once, for a configured rate, and never changes anything."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide.demand import Demand, stable_others
from themis_triton.decide.policy import Load, Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, launch_models, server_models, to_launch
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand
from themis_triton.evaluation.horizontal import efficient_instances
from themis_triton.evaluation.starts import start_planned
from themis_triton.solver.plans import StagePlan, instances_of
from themis_triton.solver.solve import solve_joint


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """Keep the plan for `static.planned_rps`; without one the fleet that runs at the start, or as many servers as can exist."""
    state = state if state.fixed_servers else _fixed(state, view)
    launch, demand = to_launch(view, state.fixed_servers), baseline_demand(view)
    sizes = view.sizes(state.fixed_instances, view.batch_caps)
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, sizes),
            stage=Stage.OPTIMISE,
            reason=Reason.SCALE_OUT if any(launch) else Reason.STEADY,
            evidence=evidence_of(view, demand, demand, desired=state.fixed_servers, predicted_p99_ms=None),
            launch=launch,
            launch_models=launch_models(view, sizes),
        ),
    )


def _fixed(state: PipelineState, view: PipelineView) -> PipelineState:
    policy = view.rules.config.policy
    if policy.static.planned_rps is not None:
        plan = view.joint(_planned(view, policy.static.planned_rps))
        servers, instances = view.servers_of(plan.stages), instances_of(plan.stages)
        return replace(state, fixed_servers=servers if plan.feasible else view.max_servers_by_group, fixed_instances=instances)
    if view.serves:
        return replace(state, fixed_servers=view.ready, fixed_instances=view.instances_now)
    return replace(
        state, fixed_servers=view.max_servers_by_group, fixed_instances=efficient_instances(view.problem, policy.horizontal.instances)
    )


def _planned(view: PipelineView, rate_rps: float) -> Demand:
    """The planned rate, and what others bring to its models in the proportion of now."""
    sigmas, now_rps = view.rules.config.policy.demand.headroom_sigmas, view.estimate.stable_rps
    others = tuple(rate_rps * rps / now_rps for rps in stable_others(view.estimate)) if now_rps else ()
    return Demand(rate_rps, 0.0, 1.0, sigmas, exact=True, other_rps=others)


def _prepared(config: PolicyConfig, load: Load) -> PolicyConfig:
    return replace(config, static=replace(config.static, planned_rps=config.static.planned_rps or load.peak_rps))


def _first_servers(config: ThemisConfig, _: Load) -> tuple[Models, ...] | None:
    rate_rps = config.policy.static.planned_rps
    return start_planned(config, rate_rps, _planned_fleet) if rate_rps is not None else None


def _planned_fleet(rules: Rules, pipeline: str, rate_rps: float) -> tuple[StagePlan, ...]:
    return solve_joint(replace(rules.problems[pipeline], demand_rps=rate_rps)).stages


STATIC = Policy(PolicyName.STATIC, propose, prepared=_prepared, first_servers=_first_servers)
