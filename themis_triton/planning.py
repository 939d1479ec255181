"""What would be planned at given arrival rates: the policies' own problems and solvers, without a fleet and without time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import PipelineConfig, Placement, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.decide.rules import Rules, build_rules
from themis_triton.policies import policy_named
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration import Migration, solve_migration
from themis_triton.solver.plans import Binding, ChainPlan, RunnerUp
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand, solve_joint, solve_vertical

MAX_SERVERS = 256
"""Every number of co-located servers is a plan of its own to be solved."""


@dataclass(frozen=True, slots=True)
class StageAnswer:
    """One stage of a plan: servers that hold it, instances (or cores) on each, and the largest batch."""

    model: str
    servers: int
    instances: int
    batch: int


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The plan for one arrival rate.

    `carried_rps` is the rate itself; where that is infeasible, the largest whole rate that can be carried with its headroom, and the
    plan is the one for that rate, with its own cost and p99; `binding` names what is short. 0: not even an idle chain meets the SLO.
    `predicted_p99_ms` None: without bound. `cost` is per second in the prices' unit, `capacity_rps` what the plan's servers put through.
    """

    rate_rps: float
    feasible: bool
    cost: float
    predicted_p99_ms: float | None
    carried_rps: float
    capacity_rps: float
    binding: Binding
    runner_up: RunnerUp | None
    stages: tuple[StageAnswer, ...]


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What is asked instead of the settings' own values: None leaves them."""

    pipeline: str | None = None
    slo_ms: float | None = None
    devices: int | None = None


def asked_pipeline(config: ThemisConfig, what_if: WhatIf) -> PipelineConfig:
    """The named pipeline, by default the first, with the requested SLO. SettingsError for an unknown name."""
    named = {pipeline.name: pipeline for pipeline in config.pipelines}
    name = what_if.pipeline if what_if.pipeline is not None else config.pipelines[0].name
    if name not in named:
        raise SettingsError(f"--pipeline: {name} is invalid: expected a pipeline of the settings: {' or '.join(named)}")
    return named[name] if what_if.slo_ms is None else replace(named[name], slo_ms=what_if.slo_ms)


def plan_rates(config: ThemisConfig, rates_rps: Sequence[float], what_if: WhatIf) -> tuple[PlanAnswer, ...]:
    """One answer per rate, in the same order: the plan of the settings' policy for a steady rate.

    themis chooses servers, instances and batches; horizontal and themis-paper fix the instances, vertical the servers, as the
    policies do.
    """
    pipeline = asked_pipeline(config, what_if)
    devices = config.planning.max_servers if what_if.devices is None else what_if.devices
    changed = replace(config, pipelines=(pipeline,), planning=replace(config.planning, max_servers=devices))
    rules = build_rules(changed)
    _check_room(pipeline, rules)
    problem = rules.problems[pipeline.name]
    instances = policy_named(config.policy.name).fixed_instances(config.policy, problem)
    return tuple(_answer(replace(problem, demand_rps=rate), rules, instances) for rate in rates_rps)


def plan_migration(config: ThemisConfig, rate_rps: float, what_if: WhatIf, now: Sequence[ServerAssignment], adopted: int = 0) -> Migration:
    """The migration from servers that run now to the plan with the cheapest one. SettingsError where stages are separate.

    The first `adopted` servers never retire.
    """
    pipeline = asked_pipeline(config, what_if)
    if config.planning.placement is Placement.SEPARATE:
        raise SettingsError("--from: no migration with planning.placement separate: expected colocated. Fix: leave --from out")
    devices = config.planning.max_servers if what_if.devices is None else what_if.devices
    rules = build_rules(replace(config, pipelines=(pipeline,), planning=replace(config.planning, max_servers=devices)))
    problem = rules.problems[pipeline.name]
    kept = max(1, adopted)
    problem = replace(problem, demand_rps=rate_rps, min_servers=kept, max_servers=max(kept, problem.max_servers))
    return solve_migration(problem, now, rules.move_times(pipeline), rules.move_prices)


def _check_room(pipeline: PipelineConfig, rules: Rules) -> None:
    stages = len(pipeline.stages)
    if rules.config.planning.placement is Placement.COLOCATED and rules.max_servers > MAX_SERVERS:
        found = f"{rules.max_servers} servers that hold all stages"
        raise SettingsError(f"--devices, planning.max_servers: {found} are too many: expected at most {MAX_SERVERS}")
    if rules.config.planning.placement is Placement.SEPARATE and rules.max_servers < stages:
        found = f"{rules.max_servers} servers in total for {stages} stages that are separate"
        raise SettingsError(f"--devices, planning.max_servers: {found} are too few: expected at least one server per stage")


def _answer(problem: ChainProblem, rules: Rules, instances: tuple[int, ...] | None) -> PlanAnswer:
    plan, carried = _solve(problem, rules, instances)
    return PlanAnswer(
        rate_rps=problem.demand_rps,
        feasible=plan.feasible,
        cost=plan.cost,
        predicted_p99_ms=plan.predicted_p99_ms if math.isfinite(plan.predicted_p99_ms) else None,
        carried_rps=carried,
        capacity_rps=plan.capacity_rps,
        binding=plan.binding,
        runner_up=plan.runner_up,
        stages=tuple(StageAnswer(stage.name, stage.servers, stage.instances, stage.batch) for stage in plan.stages),
    )


def _solve(problem: ChainProblem, rules: Rules, instances: tuple[int, ...] | None) -> tuple[ChainPlan, float]:
    """The policy's plan, and the rate that it is for."""
    if policy_named(rules.config.policy.name).fixed_servers:
        vertical = solve_vertical(problem, _held_servers(problem, rules))
        return replace(vertical.plan, feasible=vertical.feasible), vertical.largest_demand_rps
    plan = solve_joint(problem, instances=instances)
    if plan.feasible:
        return plan, problem.demand_rps
    return plan, max(0.0, largest_demand(problem, None, instances=instances))


def _held_servers(problem: ChainProblem, rules: Rules) -> int | list[int]:
    """The vertical policy's servers, at most those that there are; separate stages share them evenly."""
    separate = problem.placement is Placement.SEPARATE
    most = rules.max_servers // len(problem.stages) if separate else rules.max_servers
    servers = min(rules.config.policy.vertical.servers or most, most)
    return [servers] * len(problem.stages) if separate else servers
