"""The published rules of "A Tale of Two Scales": servers with the fewest cores while the rate is steady, more cores while it rises."""

from __future__ import annotations

from dataclasses import dataclass, replace

from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import ForecastName, PolicyConfig, PolicyName
from themis_triton.decide.demand import Demand
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, grows, launch_models, server_models, to_launch
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand, batch_limits, scaled_in
from themis_triton.evaluation.horizontal import efficient_instances
from themis_triton.solver.plans import StageSize, instances_of
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import evaluate

HORIZON_S = 10.0
# The published classifier reports a rise from a probability of 0.2 on: the rate that is exceeded with that probability.
QUANTILE = 0.8


@dataclass(frozen=True, slots=True)
class _Move:
    """The proposal of one of the two states. `steady`: instances are the steady ones, so that servers may retire."""

    stages: tuple[StageSize, ...]
    desired: tuple[int, ...]
    launch_instances: tuple[int, ...]
    feasible: bool
    steady: bool


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """The horizontal programme while the rate is steady or a stage is at its limit, else the vertical one."""
    steady = state.fixed_instances or efficient_instances(view.problem, view.rules.config.policy.themis_paper.instances)
    state, demand = replace(state, fixed_instances=steady), baseline_demand(view)
    vertical = view.serves and _must_scale_up(view, demand)
    move = _vertically(view, demand) if vertical else _horizontally(view, demand, steady)
    retire: tuple[str, ...] = ()
    if move.steady:
        state, retire = scaled_in(state, view, move.desired, view.rules.config.policy.themis_paper.scale_in_stabilization_s)
    else:
        state = replace(state, desired=())
    launch, batches = to_launch(view, move.desired), batch_limits(view, move.stages)
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, view.sizes(instances_of(move.stages), batches)),
            stage=Stage.ABSORB if vertical else Stage.OPTIMISE,
            reason=_reason(view, move, launch, retire),
            evidence=evidence_of(view, demand, demand, desired=move.desired, predicted_p99_ms=None),
            launch=launch,
            launch_models=launch_models(view, view.sizes(move.launch_instances, batches)),
            retire=retire,
        ),
    )


def _must_scale_up(view: PipelineView, demand: Demand) -> bool:
    """Whether the expected rate exceeds the throughput of what runs, and every stage may still grow."""
    at_limit = any(now >= stage.max_instances for now, stage in zip(view.instances_now, view.problem.stages, strict=True))
    return not at_limit and max(demand.rate_rps, _forecast_rps(view)) > _throughput_rps(view)


def _forecast_rps(view: PipelineView) -> float:
    configured = view.rules.config.policy.demand.forecast
    name = ForecastName.LINEAR if configured is ForecastName.NONE else configured
    return view.planner.forecaster.rate(name, view.estimate.per_second, HORIZON_S, QUANTILE)


def _throughput_rps(view: PipelineView) -> float:
    """Throughput of the ready servers as they are, all counted as the smallest; inside the SLO unless a dispatcher sets batches."""
    if not view.rules.dispatcher_sets_batches:
        return view.capacity_rps
    return evaluate(view.problem, view.ready, view.instances_now, view.batch_caps).capacity_rps


def _horizontally(view: PipelineView, demand: Demand, steady: tuple[int, ...]) -> _Move:
    """The plan with the fewest cores. Cores are removed once one server more than planned serves in the stage."""
    plan = view.joint(demand, instances=steady)
    desired = view.servers_of(plan.stages) if plan.feasible else view.max_servers_by_group
    if not view.serves:
        return _Move(plan.stages, desired, steady, plan.feasible, steady=True)
    shrinks = [any(view.instances_now[s] > steady[s] for s in group.stages) for group in view.groups]
    desired = tuple(count + extra for count, extra in zip(desired, shrinks, strict=True))
    if any(shrinks) and any(ready < count for ready, count in zip(view.ready, desired, strict=True)):
        return _Move(view.sizes_now, desired, steady, plan.feasible, steady=False)
    return _Move(plan.stages, desired, steady, plan.feasible, steady=True)


def _vertically(view: PipelineView, demand: Demand) -> _Move:
    """The fewest cores on the ready servers, never fewer than now; the missing servers where these do not suffice."""
    found = view.vertical(demand, view.ready, min_instances=view.instances_now)
    missing = found.stage_servers_missing or (0 if found.feasible else found.servers_missing or 1,) * len(view.groups)
    desired = tuple(ready + more for ready, more in zip(view.ready, missing, strict=True))
    return _Move(found.plan.stages, desired, instances_of(found.plan.stages), found.feasible, steady=False)


def _reason(view: PipelineView, move: _Move, launch: tuple[int, ...], retire: tuple[str, ...]) -> Reason:
    if any(launch):
        return Reason.SCALE_OUT
    if retire:
        return Reason.SCALE_IN
    if view.serves and grows(view, instances_of(move.stages)):
        return Reason.SURGE
    return Reason.STEADY if move.feasible else Reason.INFEASIBLE


def _fixed(policy: PolicyConfig, problem: ChainProblem) -> tuple[int, ...]:
    return efficient_instances(problem, policy.themis_paper.instances)


THEMIS_PAPER = Policy(PolicyName.THEMIS_PAPER, propose, needs_arrivals_per_second=True, fixed_instances=_fixed)
