"""Plans for given arrival rates, from the policies' own problems and solvers, without a fleet and without time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import PipelineConfig, Placement, ThemisConfig
from themis_triton.core.errors import SettingsError
from themis_triton.core.price import planned_hourly_price
from themis_triton.decide.rules import Rules, configured_sizes, sized_rules
from themis_triton.policies import policy_named
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration import Migration, solve_migration
from themis_triton.solver.migration_steps import with_requirements
from themis_triton.solver.plans import Binding, ChainPlan, RunnerUp, StagePlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand, solve_joint, solve_vertical

MAX_SERVERS = 256
"""Upper limit for co-located servers: the solver computes one plan per number of servers."""


@dataclass(frozen=True, slots=True)
class RatePlan:
    """The plan for one arrival rate.

    `carried_rps` equals the rate if it is feasible. Otherwise it is the largest feasible whole rate including headroom, the plan, cost
    and p99 are those for that rate, and `binding` names the limiting resource; 0 means that even an idle chain exceeds the SLO.
    `predicted_p99_ms` is None if unbounded. `cost` is per second in the prices' unit; `capacity_rps` is the throughput of the servers.
    `price_per_hour`: of its launched servers on the cheapest slots that they may use; None where slots have no prices or are too few.
    """

    rate_rps: float
    feasible: bool
    cost: float
    predicted_p99_ms: float | None
    carried_rps: float
    capacity_rps: float
    binding: Binding
    runner_up: RunnerUp | None
    stages: tuple[StagePlan, ...]
    price_per_hour: float | None = None


@dataclass(frozen=True, slots=True)
class WhatIf:
    """Overrides of the settings' values. None keeps the settings' value.

    `also`: requests/s of other pipelines, or of models that are called directly besides, by name. `others_at`: what reaches each stage
    besides at a rate of the pipeline's own, in place of `also`.
    """

    pipeline: str | None = None
    slo_ms: float | None = None
    devices: int | None = None
    also: tuple[tuple[str, float], ...] = ()
    others_at: Callable[[float], tuple[float, ...]] | None = None


def selected_pipeline(config: ThemisConfig, what_if: WhatIf) -> PipelineConfig:
    """The named pipeline, by default the first, with the requested SLO. SettingsError for an unknown name."""
    named = {pipeline.name: pipeline for pipeline in config.pipelines}
    name = what_if.pipeline if what_if.pipeline is not None else config.pipelines[0].name
    if name not in named:
        raise SettingsError(f"--pipeline: {name} is invalid: expected a pipeline of the settings: {' or '.join(named)}")
    return named[name] if what_if.slo_ms is None else replace(named[name], slo_ms=what_if.slo_ms)


def other_calls(config: ThemisConfig, pipeline: PipelineConfig, what_if: WhatIf) -> dict[str, dict[str, float]]:
    """Requests/s of each of the pipeline's models by their source in `also`. SettingsError for a source that adds none."""
    named = {each.name: each for each in config.pipelines}
    parts: dict[str, dict[str, float]] = {stage: {} for stage in pipeline.stages}
    for name, rate_rps in what_if.also:
        source = named.get(name)
        if source is not None and source.front == pipeline.front:
            raise SettingsError(f"--also: {name} starts with {pipeline.front}, as {pipeline.name} does: its requests are part of --rate")
        calls = dict(zip(source.stages, source.per_request, strict=True)) if source is not None else {name: 1.0}
        reached = [stage for stage in pipeline.stages if stage in calls]
        if not reached:
            expected = f"another pipeline that calls {' or '.join(pipeline.stages)}, or one of these models"
            raise SettingsError(f"--also: {name} is invalid: expected {expected}")
        for stage in reached:
            parts[stage][name] = parts[stage].get(name, 0.0) + rate_rps * calls[stage]
    return parts


def _other_rps(config: ThemisConfig, pipeline: PipelineConfig, what_if: WhatIf, rate_rps: float) -> tuple[float, ...]:
    if what_if.others_at is not None:
        return what_if.others_at(rate_rps)
    parts = other_calls(config, pipeline, what_if)
    return tuple(sum(parts[stage].values()) for stage in pipeline.stages) if what_if.also else ()


def plan_rates(config: ThemisConfig, rates_rps: Sequence[float], what_if: WhatIf) -> tuple[RatePlan, ...]:
    """One answer per rate, in the same order: the plan of the settings' policy for a steady rate.

    themis chooses servers, instances and batches; horizontal and themis-paper fix the instances, vertical the servers, as the
    policies do.
    """
    pipeline = selected_pipeline(config, what_if)
    devices = config.planning.max_servers if what_if.devices is None else what_if.devices
    changed = replace(config, pipelines=(pipeline,), planning=replace(config.planning, max_servers=devices))
    rules = sized_rules(changed)
    _check_room(pipeline, rules)
    problem = rules.problems[pipeline.name]
    instances = policy_named(config.policy.name).fixed_instances(config.policy, problem)
    problems = (replace(problem, demand_rps=rate, other_rps=_other_rps(config, pipeline, what_if, rate)) for rate in rates_rps)
    plans = [_rate_plan(each, rules, instances) for each in problems]
    return tuple(replace(plan, price_per_hour=_price(plan, pipeline, config)) for plan in plans)


def _price(plan: RatePlan, pipeline: PipelineConfig, config: ThemisConfig) -> float | None:
    return planned_hourly_price(max((stage.servers for stage in plan.stages), default=0), pipeline, config)


def plan_migration(config: ThemisConfig, rate_rps: float, what_if: WhatIf, now: Sequence[ServerAssignment], adopted: int = 0) -> Migration:
    """The cheapest migration from the running servers to a plan for the rate. SettingsError if stages are placed separately.

    The first `adopted` servers are never retired.
    """
    pipeline = selected_pipeline(config, what_if)
    if config.planning.placement is Placement.SEPARATE:
        raise SettingsError("--from: no migration with planning.placement separate: expected colocated. Fix: leave --from out")
    devices = config.planning.max_servers if what_if.devices is None else what_if.devices
    rules = sized_rules(replace(config, pipelines=(pipeline,), planning=replace(config.planning, max_servers=devices)))
    now = [server.in_requests(configured_sizes(config, pipeline)) for server in now]
    problem = replace(rules.problems[pipeline.name], other_rps=_other_rps(config, pipeline, what_if, rate_rps))
    kept = max(problem.min_servers, adopted)
    problem = replace(problem, demand_rps=rate_rps, min_servers=kept, max_servers=max(kept, problem.max_servers))
    migration = solve_migration(problem, now, rules.move_times(pipeline), rules.move_prices)
    return replace(migration, steps=with_requirements(migration.steps))


def _check_room(pipeline: PipelineConfig, rules: Rules) -> None:
    stages = len(pipeline.stages)
    if rules.config.planning.placement is Placement.COLOCATED and rules.max_servers > MAX_SERVERS:
        available = f"{rules.max_servers} servers that hold all stages"
        raise SettingsError(f"--devices, planning.max_servers: {available} are too many: expected at most {MAX_SERVERS}")
    if rules.config.planning.placement is Placement.SEPARATE and rules.max_servers < stages:
        available = f"{rules.max_servers} servers in total for {stages} stages that are separate"
        raise SettingsError(f"--devices, planning.max_servers: {available} are too few: expected at least one server per stage")


def _rate_plan(problem: ChainProblem, rules: Rules, instances: tuple[int, ...] | None) -> RatePlan:
    plan, carried = _solve(problem, rules, instances)
    return RatePlan(
        rate_rps=problem.demand_rps,
        feasible=plan.feasible,
        cost=plan.cost,
        predicted_p99_ms=plan.predicted_p99_ms if math.isfinite(plan.predicted_p99_ms) else None,
        carried_rps=carried,
        capacity_rps=plan.capacity_rps,
        binding=plan.binding,
        runner_up=plan.runner_up,
        stages=plan.stages,
    )


def _solve(problem: ChainProblem, rules: Rules, instances: tuple[int, ...] | None) -> tuple[ChainPlan, float]:
    """The policy's plan, and the rate that it carries."""
    if policy_named(rules.config.policy.name).fixed_servers:
        vertical = solve_vertical(problem, _fixed_servers(problem, rules))
        return replace(vertical.plan, feasible=vertical.feasible), vertical.largest_demand_rps
    plan = solve_joint(problem, instances=instances)
    if plan.feasible:
        return plan, problem.demand_rps
    return plan, max(0.0, largest_demand(problem, None, instances=instances))


def _fixed_servers(problem: ChainProblem, rules: Rules) -> int | list[int]:
    """The vertical policy's servers, limited to the maximum; separate stages share them evenly."""
    separate = problem.placement is Placement.SEPARATE
    max_servers = rules.max_servers // len(problem.stages) if separate else rules.max_servers
    servers = min(rules.config.policy.vertical.servers or max_servers, max_servers)
    return [servers] * len(problem.stages) if separate else servers
