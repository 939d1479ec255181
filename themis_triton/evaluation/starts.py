"""The fleets that an evaluation starts policies with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from themis_triton.core.config import ModelConfig, Placement, ThemisConfig
from themis_triton.core.estimate import RequestSize
from themis_triton.core.fleet import Models, ModelState
from themis_triton.decide.rules import Rules, sized_rules
from themis_triton.solver.plans import StageSize
from themis_triton.solver.solve import solve_joint


def start_for(config: ThemisConfig, rate_rps: float, *, batch: int | None = None) -> tuple[Models, ...]:
    """Servers for a rate: the fewest instances on each, and as many servers as the joint plan with them needs.

    `batch` is the largest batch of that plan and of the servers; None: the settings' bounds. Pipelines follow each other.
    """
    rules, states = sized_rules(config), list[Models]()
    for pipeline in config.pipelines:
        problem = replace(rules.problems[pipeline.name], demand_rps=rate_rps)
        fewest = [stage.min_instances for stage in problem.stages]
        allowed = None if batch is None else [list(range(1, min(batch, stage.max_batch) + 1)) for stage in problem.stages]
        plan = solve_joint(problem, instances=fewest, batches=allowed)
        states += _servers(config, [replace(stage, batch=_limit(config.models[stage.name], batch)) for stage in plan.stages])
    return tuple(states)


def initial_state(model: ModelConfig, instances: int, batch: int | None) -> ModelState:
    """A model's state at the start; `batch` None: the settings' bound."""
    return ModelState(instances, _limit(model, batch), model.max_queue_delay_us)


def _limit(model: ModelConfig, batch: int | None) -> int:
    return min(batch or model.max_batch, model.max_batch)


def _rows(model: ModelConfig, requests: int) -> int:
    return min(RequestSize(model.rows_per_request).rows_of(requests), model.max_batch)


def start_for_peak(config: ThemisConfig, peak_rps: float) -> tuple[Models, ...]:
    """Servers that carry a peak at their largest instance counts; they start with the fewest instances.

    Where a dispatcher sets batches, they start with batches of one, else with the settings' bounds.
    """
    rules, states = sized_rules(config), list[Models]()
    batch = 1 if rules.dispatcher_sets_batches else None
    for pipeline in config.pipelines:
        problem = replace(rules.problems[pipeline.name], demand_rps=peak_rps)
        plan = solve_joint(problem, instances=[stage.max_instances for stage in problem.stages])
        pairs = zip(problem.stages, plan.stages, strict=True)
        limits = [_limit(config.models[stage.name], batch) for stage in problem.stages]
        fewest = [
            StageSize(stage.name, planned.servers, stage.min_instances, limit)
            for (stage, planned), limit in zip(pairs, limits, strict=True)
        ]
        states += _servers(config, fewest)
    return tuple(states)


def start_planned(
    config: ThemisConfig, rate_rps: float, fleet_for: Callable[[Rules, str, float], Sequence[StageSize]]
) -> tuple[Models, ...]:
    """Each pipeline's fleet for a rate, by the policy's own planner; reduced to the servers that can exist where stages are co-located."""
    rules, states = sized_rules(config), list[list[Models]]()
    for pipeline in config.pipelines:
        fleet = fleet_for(rules, pipeline.name, rate_rps)
        states.append(_servers(config, [replace(stage, batch=_rows(config.models[stage.name], stage.batch)) for stage in fleet]))
    if config.planning.placement is Placement.COLOCATED:
        _fit(states, rules.max_servers)
    return tuple(server for servers in states for server in servers)


def _fit(states: list[list[Models]], places: int) -> None:
    """While there are more servers than places, the pipeline with the most servers gives one up; each keeps one."""
    while sum(map(len, states)) > places and max(map(len, states)) > 1:
        max(states, key=len).pop()


def _servers(config: ThemisConfig, stages: Sequence[StageSize]) -> list[Models]:
    """Servers that hold one stage each where stages are separate, else all of them."""
    states = {stage.name: ModelState(stage.instances, stage.batch, config.models[stage.name].max_queue_delay_us) for stage in stages}
    if config.planning.placement is Placement.SEPARATE:
        return [{stage.name: states[stage.name]} for stage in stages for _ in range(stage.servers)]
    return [states] * max(stage.servers for stage in stages)
