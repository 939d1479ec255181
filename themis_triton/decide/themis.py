"""Themis: two loops at their own pace. The fast one moves instances in place, the slow one servers towards the cheapest joint plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from themis_triton.core.action import ActionKind
from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyName
from themis_triton.decide.demand import Demand, fast_demand, launch_demand, slow_demand, survivor_demand
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import PolicyResult, Proposal, evidence_of, grows, leaving, shrinks, to_launch
from themis_triton.decide.state import DemandSample, PipelineState
from themis_triton.decide.view import PipelineView, VerticalTarget
from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import ChainPlan


@dataclass(frozen=True, slots=True)
class _Aim:
    """What the slow loop aims at: servers a group, the plan, and the way to it where one was weighed."""

    wanted: tuple[int, ...]
    plan: ChainPlan
    migration: Migration | None


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """One tick of both loops. A surge is absorbed by instances at once; what they cannot carry is launched at once too."""
    policy = view.rules.config.policy
    fast = fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    slow = slow_demand(view.estimate, policy, view.rules.launch_s(view.pipeline))
    now = view.in_place(fast, view.ready) if view.serves else None
    instances, allow_shrink, state = _stabilized_instances(state, view, now, fast)
    rising = launch_demand(view.estimate, policy, view.rules.launch_s(view.pipeline))
    aim = _aim(view, slow, rising)
    launch = to_launch(view, aim.wanted)
    state, retire, why = _scale_in(state, view, aim.wanted)
    if retire and view.rules.fast_actuation:
        now = view.in_place(fast, view.without(retire))
        instances = now.instances
    elif retire:
        instances = _survivors(view, fast, instances, retire)
    return PolicyResult(
        state,
        Proposal(
            instances=instances,
            batches=_batches(view, now, instances, aim),
            stage=_stage(view, now, instances, launch),
            reason=_reason(view, now, instances, launch, retire),
            evidence=evidence_of(
                view,
                fast,
                slow,
                wanted=aim.wanted,
                predicted_p99_ms=now.predicted_p99_ms if now is not None else aim.plan.predicted_p99_ms,
                missing=sum(now.missing) if now is not None else 0,
                runner_up=aim.plan.runner_up.sentence(aim.plan.cost) if aim.plan.runner_up is not None else "",
                holds_after_s=_holds_after_s(view, now, fast),
            ),
            launch=launch,
            launch_instances=_launch_instances(view, (fast, slow, rising), aim.wanted),
            retire=retire,
            allow_shrink=allow_shrink,
            overrides=_extra_instances(view, now, instances, retire),
            detail=why,
        ),
    )


def _stabilized_instances(
    state: PipelineState, view: PipelineView, now: VerticalTarget | None, fast: Demand
) -> tuple[tuple[int, ...], bool, PipelineState]:
    """Grow at once, allow_shrink late: the largest need of the last `shrink_stabilization_s`; whether servers may give up more than that.

    Nothing is released while demand grows or servers come: a shrink occupies the actuator for seconds. Actuators that take less than a
    tick need no such care.
    """
    policy = view.rules.config.policy
    if now is None:
        return view.instances_now, False, state
    if view.rules.fast_actuation and policy.scale_down.shrink_stabilization_s <= policy.tick_s:
        return now.instances, True, state
    state = state.with_sample(DemandSample(view.at_s, now.instances, view.ready), policy.scale_down.shrink_stabilization_s)
    calm = fast.extra_rps <= policy.scale_down.steady_growth_threshold * fast.rate_rps and not any(view.coming)
    settled = view.at_s - state.samples[0].at_s >= policy.scale_down.shrink_stabilization_s
    return state.max_instances_needed(), calm and settled, state


def _aim(view: PipelineView, slow: Demand, rising: Demand) -> _Aim:
    """The cheapest way to a plan for the slow demand; more servers where all instances of these could not carry what rises meanwhile.

    Nor are there ever so few that a surge by `burst_headroom_factor` would find no room in instances.
    """
    plan, migration = view.joint(slow), None
    if _moves(view, plan) and view.serves and view.rules.config.planning.placement is Placement.COLOCATED:
        migration = view.migration(slow)
        plan = migration.plan
    wanted = view.servers_of(plan) if plan.feasible else view.max_servers_by_group
    surge = replace(slow, rate_rps=slow.rate_rps * view.rules.config.policy.scale_up.burst_headroom_factor)
    wanted = _most(wanted, _most(view.fewest_servers(surge), view.fewest_servers(rising)))
    return _Aim(_at_most(wanted, view), plan, migration)


def _moves(view: PipelineView, plan: ChainPlan) -> bool:
    """Whether the plan needs other servers than the ready ones, or larger batches would be allowed after a reload."""
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    return not plan.feasible or view.servers_of(plan) != view.ready or view.batch_caps != bounds


def _most(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _at_most(wanted: tuple[int, ...], view: PipelineView) -> tuple[int, ...]:
    """A co-located chain is bounded by the servers that there can be; separate stages share them and are bounded when slots run out."""
    return tuple(max(1, min(count, view.rules.max_servers)) for count in wanted)


def _scale_in(state: PipelineState, view: PipelineView, wanted: tuple[int, ...]) -> tuple[PipelineState, tuple[str, ...], str]:
    """Servers leave when fewer have sufficed for the whole of `scale_in_stabilization_s` and the survivors carry the recent peak."""
    policy = view.rules.config.policy
    state = state.with_wanted(view.at_s, wanted, policy.scale_down.scale_in_stabilization_s)
    if all(most >= ready for most, ready in zip(wanted, view.ready, strict=True)) or (len(view.groups) == 1 and any(view.coming)):
        return state, (), ""
    would = f"{_counted(wanted)} {'server' if sum(wanted) == 1 else 'servers'} would do"
    left_s = policy.scale_down.scale_in_stabilization_s - state.covered_s(view.at_s)
    if left_s > 0:
        return state, (), f"{would}, and fewer will be left in {left_s:.0f} s if that stays so"
    if all(most >= ready for most, ready in zip(state.max_wanted(), view.ready, strict=True)):
        return state, (), f"{would}, but not for the whole of the last {policy.scale_down.scale_in_stabilization_s:.0f} s"
    peak = survivor_demand(view.estimate, policy)
    cheapest = view.joint(peak)
    kept = _most(state.max_wanted(), view.servers_of(cheapest) if cheapest.feasible else view.ready)
    retire = leaving(view, kept)
    if retire:
        return state, retire, ""
    if all(most >= ready for most, ready in zip(kept, view.ready, strict=True)):
        # Survivors that would have to grow to their limits cost more than the server that left, and the next surge has it start again.
        return state, (), f"{would}, but the recent {peak.rate_rps:.0f}/s with a margin is cheaper on {_counted(view.ready)}"
    return state, (), f"{would}, but all are adopted"


def _counted(servers: tuple[int, ...]) -> str:
    return " + ".join(map(str, servers))


def _survivors(view: PipelineView, fast: Demand, instances: tuple[int, ...], retire: tuple[str, ...]) -> tuple[int, ...]:
    """Counts with which the survivors carry the load: they grow before a server leaves."""
    strongest = max(fast.total_rps, survivor_demand(view.estimate, view.rules.config.policy).total_rps)
    plan = view.in_place(Demand(strongest, 0.0, fast.dispersion, fast.sigmas), view.without(retire))
    return tuple(map(max, instances, plan.instances))


def _launch_instances(view: PipelineView, demands: tuple[Demand, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    """A new server starts with the counts that all of them together will sample."""
    return view.in_place(max(demands, key=lambda demand: demand.total_rps), wanted).instances


def _extra_instances(
    view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], retire: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    """Servers that run one instance more than the others: those that have most already."""
    overrides: dict[str, dict[str, int]] = {}
    if now is None:
        return overrides
    for s, (name, low, extra_instance_servers) in enumerate(
        zip(view.pipeline.stages, now.instances, now.extra_instance_servers, strict=True)
    ):
        staying = [server for server in view.holders(s) if server.name not in retire]
        for server in sorted(staying, key=lambda server: -server.models[name].instances)[:extra_instance_servers]:
            overrides.setdefault(server.name, {})[name] = max(low + 1, instances[s])
    return overrides


def _batches(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], aim: _Aim) -> tuple[int, ...]:
    """Larger batches mean a reload: only while the instances that run suffice, and only where the cheapest way goes over it."""
    if view.rules.dispatcher_sets_batches:
        return now.batches if now is not None else tuple(stage.batch for stage in aim.plan.stages)
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    calm = now is not None and now.feasible and not grows(view, instances)
    reloads = aim.migration is not None and any(step.kind is ActionKind.REBATCH for step in aim.migration.steps)
    return bounds if calm and reloads else view.batch_caps


def _holds_after_s(view: PipelineView, now: VerticalTarget | None, fast: Demand) -> float | None:
    """How long until what is proposals now is carried inside the SLO, where a path can tell."""
    if now is None or view.rules.config.planning.placement is Placement.SEPARATE or view.capacity_rps() >= fast.total_rps:
        return None
    after_s = view.migration(fast).slo_holds_after_s
    return after_s if math.isfinite(after_s) else None


def _stage(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], launch: tuple[int, ...]) -> Stage:
    surging = now is None or not now.feasible or grows(view, instances) or any(launch)
    return Stage.ABSORB if surging else Stage.OPTIMISE


def _reason(
    view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], launch: tuple[int, ...], retire: tuple[str, ...]
) -> Reason:
    if now is not None and not now.feasible and not any(launch) and not any(view.coming):
        return Reason.INFEASIBLE
    if any(launch):
        return Reason.SCALE_OUT
    if retire:
        return Reason.SCALE_IN
    if grows(view, instances):
        return Reason.SURGE
    return Reason.SETTLE if shrinks(view, instances) else Reason.STEADY


THEMIS = Policy(PolicyName.THEMIS, propose, waits_for_batches=False)
