"""Concurrency: the baseline that is Knative's autoscaler, which keeps the requests inside each server at a fraction of a target.

The mean of a minute decides, unless that of six seconds asks for twice the ready servers: then the larger one does, and nothing is
removed until a minute after the burst.
"""

from __future__ import annotations

import math
from dataclasses import replace

from themis_triton.core.config import Placement
from themis_triton.core.policy import ConcurrencyConfig, PolicyName
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, leaving
from themis_triton.decide.state import AutoscalerState, Group, PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.evaluation.common import baseline_demand
from themis_triton.evaluation.horizontal import FleetTarget, efficient_instances, fixed_instances, fleet_proposal
from themis_triton.solver.problem import ChainProblem
from themis_triton.solver.solve import largest_demand, solve_joint

TICK_S = 2.0
MAX_SCALE_DOWN_RATE = 2.0
LARGE_RPS = 100_000.0
PLANNED_RPS = 100.0
"""The rate whose plan says how long a request stays in each separate stage."""


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """Servers with fixed instances, as many as the autoscaler of their group says."""
    policy, demand = view.rules.config.policy, baseline_demand(view)
    instances = state.fixed_instances or efficient_instances(view.problem, policy.horizontal.instances)
    key = ("concurrency", view.pipeline.name, instances)
    targets = view.planner.remembered(key, lambda: concurrency_of(view.problem, instances))
    known = state.autoscalers or tuple(_started(group, view) for group in view.groups)
    parts = zip(known, view.groups, targets, strict=True)
    scaled = tuple(_scaled(each, group, view, policy.concurrency, target) for each, group, target in parts)
    desired = tuple(each.servers for each in scaled)
    target = FleetTarget(demand, instances, view.joint(demand, instances=instances), desired, leaving(view, desired))
    return PolicyResult(replace(state, fixed_instances=instances, autoscalers=scaled), fleet_proposal(view, target))


def concurrency_of(problem: ChainProblem, instances: tuple[int, ...]) -> tuple[float, ...]:
    """Requests inside a server of each group at its largest rate inside the SLO, by Little's law."""
    if problem.placement is Placement.COLOCATED:
        return (largest_demand(problem, 1, instances=instances, max_rate_rps=LARGE_RPS) * problem.slo_ms / 1000.0,)
    plan = solve_joint(replace(problem, demand_rps=PLANNED_RPS), instances=instances)
    return tuple(stage.capacity_rps / stage.servers * (stage.latency_ms + stage.queueing_ms) / 1000.0 for stage in plan.stages)


def _started(group: Group, view: PipelineView) -> AutoscalerState:
    """Several servers at the start are kept as if a burst had just been seen, until there is history."""
    ready = len(group.ready)
    return AutoscalerState(servers=max(1, ready), next_at_s=view.at_s, panic_at_s=view.at_s if ready > 1 else None)


def _scaled(state: AutoscalerState, group: Group, view: PipelineView, config: ConcurrencyConfig, target: float) -> AutoscalerState:
    """The autoscaler after this tick; it samples at each, and decides every two seconds."""
    now_s, inside = view.at_s, sum(view.models[name].in_flight for name in group.names if name in view.models)
    samples = tuple(entry for entry in (*state.samples, (now_s, inside)) if entry[0] > now_s - config.stable_window_s)
    state = replace(state, samples=samples)
    if now_s < state.next_at_s:
        return state
    kept_at = config.target_utilization * (config.target or target)
    stable, panic = (math.ceil(_mean(samples, now_s - window_s) / kept_at) for window_s in (config.stable_window_s, config.panic_window_s))
    return decided(replace(state, next_at_s=now_s + TICK_S), (stable, panic), len(group.ready), view, config)


def decided(state: AutoscalerState, wanted: tuple[int, int], ready: int, view: PipelineView, config: ConcurrencyConfig) -> AutoscalerState:
    """The next target for the servers that the stable and the panic window ask for."""
    stable, panic = wanted
    fewest = math.floor(max(1, ready) / MAX_SCALE_DOWN_RATE)
    panic_at_s = state.panic_at_s
    if panic / max(1, ready) >= config.panic_threshold:
        panic_at_s = view.at_s
    elif panic_at_s is not None and panic_at_s + config.stable_window_s < view.at_s:
        panic_at_s = None
    servers = max(1, stable, fewest)
    if panic_at_s is not None:
        servers = max(servers, panic, state.servers)
    return replace(state, servers=min(servers, view.rules.max_servers), panic_at_s=panic_at_s)


def _mean(samples: tuple[tuple[float, float], ...], since_s: float) -> float:
    values = [value for at_s, value in samples if at_s > since_s]
    return sum(values) / len(values)


CONCURRENCY = Policy(PolicyName.CONCURRENCY, propose, fixed_instances=fixed_instances)
