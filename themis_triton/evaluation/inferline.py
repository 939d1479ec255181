"""InferLine: the baseline that plans its replicas once, for a base rate, and later only counts how many of them the rate needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.fleet import Models
from themis_triton.core.policy import PolicyConfig, PolicyName
from themis_triton.decide.demand import Demand
from themis_triton.decide.policy import Load, Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, launch_models, server_models, to_launch
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand, batch_limits, scaled_in
from themis_triton.evaluation.starts import start_planned
from themis_triton.solver.plans import Evaluation, StageSize, batches_of, instances_of
from themis_triton.solver.problem import ChainProblem, Placement
from themis_triton.solver.solve import evaluate

PLANNING_PERCENTILE = 90.0


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """Servers in proportion to the largest second of the peak window: `ceil(rate / (μ·ρ))`, with the plan's throughput and utilisation."""
    policy, demand = view.rules.config.policy, baseline_demand(view)
    base_rps = policy.inferline.planned_rps or state.fixed_rps or demand.rate_rps
    key = ("inferline", view.pipeline.name, base_rps)
    plan = view.planner.remembered(key, lambda: base_plan(view.rules, view.pipeline.name, base_rps))
    # The plan's utilisation is ρ = base / (n·μ), so that μ·ρ is its share of the base rate a server.
    loads = _loads_rps(view, demand)
    needed = (max(plan[s].servers * loads[s] for s in group.stages) / base_rps if base_rps else 1.0 for group in view.groups)
    desired = tuple(min(max(1, math.ceil(count - 1e-9)), most) for count, most in zip(needed, _most(view), strict=True))
    state, retire = scaled_in(replace(state, fixed_rps=base_rps), view, desired, policy.inferline.scale_in_stabilization_s)
    launch, sizes = to_launch(view, desired), view.sizes(instances_of(plan), batch_limits(view, plan))
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, sizes),
            stage=Stage.OPTIMISE,
            reason=Reason.SCALE_OUT if any(launch) else Reason.SCALE_IN if retire else Reason.STEADY,
            evidence=evidence_of(view, demand, demand, desired=desired, predicted_p99_ms=None),
            launch=launch,
            launch_models=launch_models(view, sizes),
            retire=retire,
        ),
    )


def _loads_rps(view: PipelineView, demand: Demand) -> list[float]:
    """By stage, the pipeline's rate at which its calls would be as many as all that reach the stage."""
    others = demand.other_rps or (0.0,) * len(view.problem.stages)
    return [demand.rate_rps + other / stage.demand_ratio for other, stage in zip(others, view.problem.stages, strict=True)]


def _most(view: PipelineView) -> tuple[int, ...]:
    return (view.rules.max_servers,) * len(view.groups)


def base_plan(rules: Rules, pipeline: str, rate_rps: float) -> tuple[StageSize, ...]:
    """Hill-climbing from batches of one on the most instances: each time the step that saves most, while there is a feasible one.

    A step is a server fewer or an instance fewer a server, of one stage, alone or with larger batches of it. Feasible: at the base
    rate, with the waits' 90th percentile. Where the start is not feasible, it may stay the plan.
    """
    problem = replace(rules.problems[pipeline], demand_rps=rate_rps, percentile=PLANNING_PERCENTILE, headroom_sigmas=0.0)
    plan = _start(problem)
    while steps := [result for step in _steps(problem, plan) if (result := _result(problem, step)).feasible]:
        plan = min(steps, key=lambda result: result.cost).stages
    return plan


def _start(problem: ChainProblem) -> tuple[StageSize, ...]:
    single = tuple(StageSize(stage.name, 1, stage.max_instances, 1) for stage in problem.stages)
    pairs = zip(problem.stages, _result(problem, single).stages, strict=True)
    needs = [max(1, math.ceil(problem.demand_rps * stage.demand_ratio / one.capacity_rps)) for stage, one in pairs]
    if problem.placement is not Placement.SEPARATE:
        needs = [max(needs)] * len(needs)
    return tuple(replace(one, servers=n) for one, n in zip(single, needs, strict=True))


def _steps(problem: ChainProblem, plan: tuple[StageSize, ...]) -> Iterator[tuple[StageSize, ...]]:
    together = problem.placement is not Placement.SEPARATE
    for s, stage in enumerate(problem.stages):
        for batch in range(plan[s].batch, stage.max_batch + 1):
            larger = replace(plan[s], batch=batch)
            if plan[s].servers > 1:
                fewer = tuple(replace(size, servers=size.servers - 1) for size in plan) if together else plan
                yield _with(fewer, s, replace(larger, servers=larger.servers - 1))
            if plan[s].instances > stage.min_instances:
                yield _with(plan, s, replace(larger, instances=larger.instances - 1))


def _with(plan: tuple[StageSize, ...], s: int, size: StageSize) -> tuple[StageSize, ...]:
    return (*plan[:s], size, *plan[s + 1 :])


def _result(problem: ChainProblem, plan: tuple[StageSize, ...]) -> Evaluation:
    servers = [size.servers for size in plan] if problem.placement is Placement.SEPARATE else plan[0].servers
    return evaluate(problem, servers, instances_of(plan), batches_of(plan))


def _prepared(config: PolicyConfig, load: Load) -> PolicyConfig:
    return replace(config, inferline=replace(config.inferline, planned_rps=config.inferline.planned_rps or load.first_rps))


def _first_servers(config: ThemisConfig, _: Load) -> tuple[Models, ...] | None:
    rate_rps = config.policy.inferline.planned_rps
    return start_planned(config, rate_rps, base_plan) if rate_rps is not None else None


INFERLINE = Policy(PolicyName.INFERLINE, propose, prepared=_prepared, first_servers=_first_servers)
