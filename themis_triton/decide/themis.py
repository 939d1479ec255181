"""The policy `themis`: a fast loop changes instances in place, a slow loop moves servers towards the cheapest joint plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from operator import add

from themis_triton.core.action import ActionKind
from themis_triton.core.config import Isolation, Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyName
from themis_triton.decide.demand import (
    Demand,
    backlog_of,
    fast_demand,
    launch_demand,
    slow_demand,
    surge_demand,
    survivor_demand,
    trend_rps,
)
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import (
    PolicyResult,
    Proposal,
    evidence_of,
    grows,
    launch_models,
    leaving,
    server_models,
    shrinks,
    to_launch,
)
from themis_triton.decide.state import DemandSample, PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import ChainPlan, StageSize, VerticalTarget, batches_of, instances_of

NO_DEMAND = Demand(0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True, slots=True)
class _SlowTarget:
    """The slow loop's target: places a group, the plan, and the migration to it where one was solved.

    `reserve`: the places that a surge of `burst_headroom_factor` times the rate would take. `rises`: see `_rises`.
    """

    desired: tuple[int, ...]
    plan: ChainPlan
    migration: Migration | None
    reserve: tuple[int, ...]
    rises: bool


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """One tick of both loops. Instances absorb a surge at once; servers for what instances cannot carry are launched at once."""
    policy = view.rules.config.policy
    fast = fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    slow = slow_demand(view.estimate, policy, _lead_s(view), view.planner.forecaster)
    growth, state = _growth_demand(state, view, fast)
    now = view.in_place(growth, _in_reach(view)) if view.serves else None
    at_launch = launch_demand(view.estimate, policy, _lead_s(view))
    target = _slow_target(view, fast, slow, at_launch)
    target = replace(target, desired=_bounded(_larger(target.desired, _beyond_open_calls(view, now, at_launch)), view))
    extend, launch = _new_places(view, now, target, may_grow=growth is not NO_DEMAND)
    if not extend and not any(launch) and _settled(view, fast):
        launch = _isolated(view, target) or launch
    if extend:
        now = view.in_place(growth, (_in_reach(view)[0] + extend,))
    instances, allow_shrink, state = _stabilized_instances(state, view, now, fast)
    allow_shrink = allow_shrink and growth is not NO_DEMAND
    state, retire, why = _scale_in(state, view, target.desired)
    if retire and view.rules.fast_actuation:
        now = view.in_place(fast, view.without(retire))
        instances = instances_of(now.stages)
    elif retire:
        instances = _survivors(view, fast, instances, retire)
    batches = _batches(view, now, instances, target)
    return PolicyResult(
        state,
        Proposal(
            servers=server_models(view, _sizes(view, now, instances, batches), retire=retire, allow_shrink=allow_shrink),
            stage=_stage(view, now, instances, extend, launch),
            reason=_reason(view, now, instances, extend, launch, retire),
            evidence=evidence_of(
                view,
                fast,
                slow,
                desired=target.desired,
                predicted_p99_ms=now.predicted_p99_ms if now is not None else target.plan.predicted_p99_ms,
                missing=sum(now.missing) if now is not None else 0,
                runner_up=target.plan.runner_up.sentence(target.plan.cost) if target.plan.runner_up is not None else "",
                holds_after_s=_holds_after_s(view, now, fast),
            ),
            launch=launch,
            extend=extend,
            launch_models=launch_models(view, view.sizes(_launch_instances(view, (growth, slow, at_launch), target.desired), batches)),
            retire=retire,
            detail=why,
        ),
    )


def _in_reach(view: PipelineView) -> tuple[int, ...]:
    """The places that carry the load after one initialisation: the ready ones and those being added to running servers."""
    return tuple(ready + view.extending for ready in view.ready) if len(view.groups) == 1 else view.ready


def _rises(view: PipelineView, fast: Demand) -> bool:
    """Whether the demand exceeds what the ready places carry."""
    return view.serves and fast.with_headroom_rps() > view.capacity_rps()


def _settled(view: PipelineView, fast: Demand) -> bool:
    """Whether the ready places carry the demand, and it shows no rise."""
    policy = view.rules.config.policy
    steady = fast.extra_rps <= policy.scale_down.steady_growth_threshold * fast.rate_rps
    return steady and not _rises(view, fast) and trend_rps(view.estimate, policy, view.rules.launch_s(view.pipeline)) == 0.0


def _lead_s(view: PipelineView) -> float:
    """How long a new place takes: an initialisation while running servers reach further devices, else a launch."""
    return view.rules.init_s(view.pipeline) if view.reachable else view.rules.launch_s(view.pipeline)


def _new_places(view: PipelineView, now: VerticalTarget | None, target: _SlowTarget, *, may_grow: bool) -> tuple[int, tuple[int, ...]]:
    """(places to add to running servers, servers to launch a group).

    A new place takes an initialisation, a server a cold start: running servers take all that is desired as far as they reach.
    """
    wanted = to_launch(view, target.desired)
    if len(view.groups) > 1:
        return 0, wanted
    missing = max(0, sum(now.missing) if now is not None else 0)
    # A server that launches is no help yet.
    near = target.desired[0] - view.ready[0] - view.extending if target.rises else wanted[0]
    extend = min(view.reachable, max(missing, near, 0))
    return extend if may_grow else 0, (max(0, wanted[0] - extend),)


def _isolated(view: PipelineView, target: _SlowTarget) -> tuple[int, ...]:
    """Servers to launch with `isolation: process` once the load is carried: one for each place that shares a process.

    As far as slots are free, and as running servers then still reach what a surge would take.
    """
    launch = view.rules.config.launch
    if launch is None or launch.isolation is Isolation.NONE or len(view.groups) > 1 or view.extending:
        return ()
    processes = view.ready[0] - view.extra + view.coming[0]
    spare = min(view.free_slots, view.reachable) - max(0, target.reserve[0] - view.ready[0])
    return (max(0, min(target.desired[0] - processes, spare)),)


def _growth_demand(state: PipelineState, view: PipelineView, fast: Demand) -> tuple[Demand, PipelineState]:
    """The demand that instances are sized for: the whole surge's, where they must grow while requests wait.

    The next change of the model waits until its queue was empty, so a growth that only suffices now cannot be corrected in time.
    For the same reason the first tick of a steep rise requests no growth: it has seen too little of the surge to size it.
    """
    policy, rules, estimate = view.rules.config.policy, view.rules, view.estimate
    if rules.whole_changes or fast.with_headroom_rps() <= view.capacity_rps():
        return fast, replace(state, exceeded_since_s=None)
    since_s = view.at_s if state.exceeded_since_s is None else state.exceeded_since_s
    state = replace(state, exceeded_since_s=since_s)
    steep = estimate.newest_rps > policy.scale_up.steep_rise_factor * estimate.stable_rps
    if steep and view.at_s - since_s < policy.tick_s / 2.0:
        return NO_DEMAND, state
    if backlog_of(estimate, policy) == 0.0:
        return fast, state
    surge = surge_demand(estimate, policy, rules.init_s(view.pipeline), view.capacity_rps())
    return max(fast, surge, key=Demand.with_headroom_rps), state


def _stabilized_instances(
    state: PipelineState, view: PipelineView, now: VerticalTarget | None, fast: Demand
) -> tuple[tuple[int, ...], bool, PipelineState]:
    """Instances a stage, and whether servers may shrink to them: growth at once, shrinking after the stabilization window.

    Nothing shrinks while demand grows or servers are coming: a shrink occupies the actuator for seconds. Where in-place changes take
    less than a tick, no stabilization is needed.
    """
    policy = view.rules.config.policy
    if now is None:
        return view.instances_now, False, state
    if view.rules.fast_actuation and policy.scale_down.shrink_stabilization_s <= policy.tick_s:
        return instances_of(now.stages), True, state
    state = state.with_sample(DemandSample(view.at_s, instances_of(now.stages), view.ready), policy.scale_down.shrink_stabilization_s)
    steady = fast.extra_rps <= policy.scale_down.steady_growth_threshold * fast.rate_rps and not any(view.coming)
    covered = view.at_s - state.samples[0].at_s >= policy.scale_down.shrink_stabilization_s
    return state.max_instances_needed(), steady and covered, state


def _slow_target(view: PipelineView, fast: Demand, slow: Demand, at_launch: Demand) -> _SlowTarget:
    """The plan with the cheapest migration for the slow demand; more servers where instances alone could not carry the launch demand.

    There are always enough servers to carry `burst_headroom_factor` times the rate by adding instances and places. Once instances
    must be added, so are those places, all at once: the next change of a model may have to wait until its queue is empty.
    """
    plan, migration = view.joint(slow), None
    if _moves(view, plan) and view.serves and view.rules.config.planning.placement is Placement.COLOCATED:
        migration = view.migration(slow)
        plan = migration.plan
    desired = view.servers_of(plan.stages) if plan.feasible else view.max_servers_by_group
    surge = replace(slow, rate_rps=slow.rate_rps * view.rules.config.policy.scale_up.burst_headroom_factor)
    rises = _rises(view, fast)
    if rises and view.reachable:
        surge = replace(surge, rate_rps=max(surge.rate_rps, fast.rate_rps * view.rules.config.policy.scale_up.burst_headroom_factor))
    later = 0 if rises else view.reachable
    reserve = view.fewest_servers(surge)
    desired = _larger(desired, _larger(tuple(max(1, count - later) for count in reserve), view.fewest_servers(at_launch)))
    return _SlowTarget(_bounded(desired, view), plan, migration, reserve, rises)


def _beyond_open_calls(view: PipelineView, now: VerticalTarget | None, at_launch: Demand) -> tuple[int, ...]:
    """Servers for what growth under way leaves uncarried: until the queues were empty, other counts come from other servers only.

    0 where the queues will be empty before a new server serves.
    """
    if now is None or not view.open_calls or view.rules.config.planning.placement is Placement.SEPARATE:
        return (0,) * len(view.groups)
    committed_rps = view.committed_rps(instances_of(now.stages))
    missing_rps = at_launch.with_headroom_rps() - committed_rps
    spare_rps = committed_rps - at_launch.rate_rps
    drains = spare_rps > 0.0 and backlog_of(view.estimate, view.rules.config.policy) <= spare_rps * view.rules.launch_s(view.pipeline)
    if missing_rps <= 0.0 or drains:
        return (0,) * len(view.groups)
    return tuple(map(add, view.ready, view.fewest_servers(Demand(missing_rps, 0.0, at_launch.dispersion, 0.0))))


def _moves(view: PipelineView, plan: ChainPlan) -> bool:
    """Whether the plan needs other servers than the ready ones, or a reload would allow larger batches."""
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    return not plan.feasible or view.servers_of(plan.stages) != view.ready or view.batch_caps != bounds


def _larger(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _bounded(desired: tuple[int, ...], view: PipelineView) -> tuple[int, ...]:
    """At most the servers that can exist; separate stages share them, and are bounded when slots run out."""
    return tuple(max(1, min(count, view.rules.max_servers)) for count in desired)


def _scale_in(state: PipelineState, view: PipelineView, desired: tuple[int, ...]) -> tuple[PipelineState, tuple[str, ...], str]:
    """Servers to retire: once fewer have sufficed for the stabilization window and the others carry the recent peak."""
    policy = view.rules.config.policy
    state = state.with_desired(view.at_s, desired, policy.scale_down.scale_in_stabilization_s)
    if all(count >= ready for count, ready in zip(desired, view.ready, strict=True)) or (len(view.groups) == 1 and any(view.coming)):
        return state, (), ""
    suffices = f"{_counted(desired)} {view.unit} suffices" if sum(desired) == 1 else f"{_counted(desired)} {view.unit}s suffice"
    left_s = policy.scale_down.scale_in_stabilization_s - state.covered_s(view.at_s)
    if left_s > 0:
        return state, (), f"{suffices}; scale-in in {left_s:.0f} s if that lasts"
    if all(count >= ready for count, ready in zip(state.max_desired(), view.ready, strict=True)):
        return state, (), f"{suffices}, but not throughout the last {policy.scale_down.scale_in_stabilization_s:.0f} s"
    peak = survivor_demand(view.estimate, policy)
    cheapest = view.joint(peak)
    kept = _larger(state.max_desired(), view.servers_of(cheapest.stages) if cheapest.feasible else view.ready)
    retire = leaving(view, kept)
    if retire:
        return state, retire, ""
    if all(count >= ready for count, ready in zip(kept, view.ready, strict=True)):
        # Remaining servers at their limits would cost more than the retired one, and the next surge would launch it again.
        return state, (), f"{suffices}, but the recent {peak.rate_rps:.0f}/s with a margin is cheaper on {_counted(view.ready)}"
    return state, (), f"{suffices}, but all servers are adopted"


def _counted(servers: tuple[int, ...]) -> str:
    return " + ".join(map(str, servers))


def _survivors(view: PipelineView, fast: Demand, instances: tuple[int, ...], retire: tuple[str, ...]) -> tuple[int, ...]:
    """Instances with which the remaining servers carry the load: they grow before a server retires."""
    largest_rps = max(fast.total_rps, survivor_demand(view.estimate, view.rules.config.policy).total_rps)
    plan = view.in_place(Demand(largest_rps, 0.0, fast.dispersion, fast.sigmas), view.without(retire))
    return tuple(map(max, instances, instances_of(plan.stages)))


def _launch_instances(view: PipelineView, demands: tuple[Demand, ...], desired: tuple[int, ...]) -> tuple[int, ...]:
    """Instances of a new server or place: those that all together will need; a place beside others as many as the smallest of them.

    A place that is added in a surge cannot be corrected soon, and idle instances cost little else than memory.
    """
    needed = instances_of(view.in_place(max(demands, key=lambda demand: demand.total_rps), desired).stages)
    return tuple(map(max, needed, view.instances_now)) if view.reachable or view.extending else needed


def _sizes(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], batches: tuple[int, ...]) -> tuple[StageSize, ...]:
    """The stages' sizes; where the stabilized count is the planned one, some servers run one instance more."""
    sizes = view.sizes(instances, batches)
    if now is None:
        return sizes
    return tuple(
        replace(size, extra_instance_servers=planned.extra_instance_servers) if size.instances == planned.instances else size
        for size, planned in zip(sizes, now.stages, strict=True)
    )


def _batches(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], target: _SlowTarget) -> tuple[int, ...]:
    """Batch limits; they are raised, which takes a reload, only while the running instances suffice and the cheapest migration does so."""
    if view.rules.dispatcher_sets_batches:
        return batches_of(now.stages if now is not None else target.plan.stages)
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    steady = now is not None and now.feasible and not grows(view, instances)
    reloads = target.migration is not None and any(step.kind is ActionKind.REBATCH for step in target.migration.steps)
    return bounds if steady and reloads else view.batch_caps


def _holds_after_s(view: PipelineView, now: VerticalTarget | None, fast: Demand) -> float | None:
    """Seconds until the present demand is carried inside the SLO; None where it is already or no migration is solved."""
    if now is None or view.rules.config.planning.placement is Placement.SEPARATE or view.capacity_rps() >= fast.total_rps:
        return None
    after_s = view.migration(fast).slo_holds_after_s
    return after_s if math.isfinite(after_s) else None


def _stage(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], extend: int, launch: tuple[int, ...]) -> Stage:
    surging = now is None or not now.feasible or grows(view, instances) or extend > 0 or any(launch)
    return Stage.ABSORB if surging else Stage.OPTIMISE


def _reason(
    view: PipelineView,
    now: VerticalTarget | None,
    instances: tuple[int, ...],
    extend: int,
    launch: tuple[int, ...],
    retire: tuple[str, ...],
) -> Reason:
    if now is not None and not now.feasible and not extend and not any(launch) and not any(view.coming):
        return Reason.INFEASIBLE
    if any(launch):
        return Reason.SCALE_OUT
    if retire:
        return Reason.SCALE_IN
    if extend or grows(view, instances):
        return Reason.SURGE
    return Reason.SETTLE if shrinks(view, instances) else Reason.STEADY


THEMIS = Policy(PolicyName.THEMIS, propose, waits_for_batches=False)
