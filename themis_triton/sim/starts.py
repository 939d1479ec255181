"""What a simulated policy starts from, and by which settings: the published evaluation's own where stages are separate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import Placement, ThemisConfig
from themis_triton.core.fleet import ModelState
from themis_triton.core.policy import PolicyName
from themis_triton.decide.inferline import base_plan
from themis_triton.decide.paper import paper_rules
from themis_triton.decide.rules import build_rules
from themis_triton.sim.setup import SimOptions, simulated, start_for
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import solve_joint

Models = dict[str, ModelState]


@dataclass(frozen=True, slots=True)
class Load:
    """What a policy is told of a trace before it runs: the largest rate of its beginning, and of the whole (requests/s)."""

    first_rps: float
    peak_rps: float


def ruled(config: ThemisConfig, policy: PolicyName, load: Load) -> ThemisConfig:
    """The settings that a policy runs by; `static` plans for the trace's peak and `inferline` for its beginning, unless they are told."""
    planned = {PolicyName.STATIC: load.peak_rps, PolicyName.INFERLINE: load.first_rps}.get(policy)
    return paper_rules(config, policy, config.under(policy).policy.planned_rps or planned)


def start_of(config: ThemisConfig, policy: PolicyName, load: Load, options: SimOptions, *, waits: bool) -> tuple[Models, ...] | None:
    """First servers for `SimOptions.servers`; None: the options' own. `config` is the policy's, as `ruled` gives it.

    Where stages are separate: `vertical` has servers for the peak, the others the fewest cores and servers for the beginning; those
    of a world that `waits` for full batches begin with batches of one.
    """
    built = simulated(config, options)
    if policy in {PolicyName.STATIC, PolicyName.INFERLINE}:
        return start_planned(built, policy)
    if config.planning.placement is not Placement.SEPARATE:
        return None
    if policy is PolicyName.VERTICAL:
        return start_for_peak(built, load.peak_rps)
    return start_for(built, load.first_rps, batch=1 if waits else None)


def start_for_peak(config: ThemisConfig, peak_rps: float) -> tuple[Models, ...]:
    """Servers that carry a peak with as many instances as they may run; they start with the fewest and batches of one."""
    rules, states = build_rules(config), list[Models]()
    for pipeline in config.pipelines:
        problem = replace(rules.problems[pipeline.name], demand_rps=peak_rps)
        plan = solve_joint(problem, instances=[stage.max_instances for stage in problem.stages])
        least = [stage.min_instances for stage in problem.stages]
        states += _held(config, problem, _counts(plan), least, [1] * len(least))
    return tuple(states)


def start_planned(config: ThemisConfig, policy: PolicyName) -> tuple[Models, ...] | None:
    """What `static` or `inferline` planned, running; None without a `planned_rps`."""
    rate_rps = config.policy.planned_rps
    if rate_rps is None:
        return None
    rules, states = build_rules(config), list[list[Models]]()
    for pipeline in config.pipelines:
        problem = replace(rules.problems[pipeline.name], demand_rps=rate_rps)
        if policy is PolicyName.INFERLINE:
            base = base_plan(rules, pipeline.name, rate_rps)
            states.append(_held(config, problem, base.servers, base.instances, base.batches))
        else:
            plan = solve_joint(problem)
            counts, batches = ([getattr(stage, key) for stage in plan.stages] for key in ("instances", "batch"))
            states.append(_held(config, problem, _counts(plan), counts, batches))
    if config.planning.placement is Placement.COLOCATED:
        _fit(states, rules.max_servers)
    return tuple(server for held in states for server in held)


def _fit(states: list[list[Models]], places: int) -> None:
    """Where pipelines together want more servers than there can be, whoever has most does with one fewer, down to one each."""
    while sum(map(len, states)) > places and max(map(len, states)) > 1:
        max(states, key=len).pop()


def _counts(plan: ChainPlan) -> tuple[int, ...]:
    return tuple(stage.servers for stage in plan.stages)


def _held(
    config: ThemisConfig, problem: ChainProblem, servers: Sequence[int], instances: Sequence[int], batches: Sequence[int]
) -> list[Models]:
    """A server a stage where they are separate, with just that stage; else servers with all of them."""
    delays = [config.models[stage.name].max_queue_delay_us for stage in problem.stages]
    rows = zip(problem.stages, instances, batches, delays, strict=True)
    states = {stage.name: ModelState(count, batch, delay) for stage, count, batch, delay in rows}
    if problem.placement is Placement.SEPARATE:
        return [{stage.name: states[stage.name]} for stage, n in zip(problem.stages, servers, strict=True) for _ in range(n)]
    return [states] * max(servers)
