"""The policy `themis`: a fast loop changes instances in place, a slow loop moves servers towards the cheapest joint plan."""

from __future__ import annotations

from themis_triton.core.action import ActionKind
from themis_triton.core.config import Placement
from themis_triton.core.decision import Reason, Stage
from themis_triton.core.policy import PolicyName
from themis_triton.core.price import instance_price
from themis_triton.core.replacing import replaced
from themis_triton.decide.bursts import BurstMemory, BurstTick
from themis_triton.decide.demand import (
    Demand,
    backlog_of,
    fast_demand,
    launch_demand,
    slow_demand,
    surge_demand,
    survivor_demand,
)
from themis_triton.decide.policy import Policy
from themis_triton.decide.proposal import (
    PolicyResult,
    Proposal,
    evidence_of,
    grows,
    launch_models,
    server_models,
    shrinks,
)
from themis_triton.decide.slow_target import SlowTarget
from themis_triton.decide.state import DemandSample, PipelineState
from themis_triton.decide.themis_servers import isolated, kept_target, new_places, scale_in, settled
from themis_triton.decide.view import PipelineView
from themis_triton.solver.plans import StageSize, VerticalTarget, batches_of, instances_of

NO_DEMAND = Demand(0.0, 0.0, 1.0, 0.0)


def propose(state: PipelineState, view: PipelineView) -> PolicyResult:
    """One tick of both loops. Instances absorb a surge at once; servers for what instances cannot carry are launched at once."""
    policy = view.rules.config.policy
    fast = fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline) + view.age_s)
    slow = slow_demand(view.estimate, policy, _lead_s(view), view.planner.forecaster)
    growth, state = _growth_demand(state, view, fast)
    growth = _at_jump(view, growth)
    now = view.in_place(growth, _in_reach(view)) if view.serves else None
    state = replaced(state, bursts=_bursts(state, view, fast))
    at_launch = launch_demand(view.estimate, policy, _lead_s(view), within_reach=view.within_reach)
    state, target = kept_target(state, view, now, (fast, slow, at_launch))
    extend, launch = new_places(view, now, target, may_grow=growth is not NO_DEMAND)
    if not extend and not any(launch) and settled(view, fast):
        launch = isolated(view, target) or launch
    if extend:
        now = view.in_place(growth, (_in_reach(view)[0] + extend,))
    instances, allow_shrink, state = _stabilized_instances(state, view, now, fast)
    allow_shrink = allow_shrink and growth is not NO_DEMAND and (view.prompt or not extend)
    state, retire, why = scale_in(state, view, target)
    if retire and view.prompt:
        now = view.in_place(fast, view.without(retire))
        instances = instances_of(now.stages)
    elif retire:
        instances = _survivors(view, fast, instances, retire)
    batches, planned = _batches(view, now, instances, target), now or target.plan
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
                predicted_p99_ms=planned.predicted_p99_ms if planned is not None else None,
                missing=sum(now.missing) if now is not None else 0,
                runner_up=target.runner_up(view.unit),
                holds_after_s=_holds_after_s(view, now, fast, launch),
            ),
            launch=launch,
            extend=extend,
            launch_models=launch_models(view, view.sizes(_launch_instances(view, (growth, slow, at_launch), target, instances), batches)),
            retire=retire,
            detail=why or _one_server_words(view, now) or _due_words(view, target) or _burst_words(state, view),
        ),
    )


def _bursts(state: PipelineState, view: PipelineView, fast: Demand) -> BurstMemory:
    """What is remembered of the pipeline's bursts, with this tick."""
    scale_up, launch_s = view.rules.config.policy.scale_up, view.rules.launch_s(view.pipeline)
    exceeds = fast.with_headroom_rps() > view.capacity_rps
    now = BurstTick(view.at_s, view.ended, view.estimate.recent_rps, view.estimate.stable_rps, exceeds)
    return state.bursts.observed(now, view.pipeline.percentile, launch_s, scale_up.burst_memory_s)


def _one_server_words(view: PipelineView, now: VerticalTarget | None) -> str:
    if now is None or now.feasible or not view.one_server:
        return ""
    return "it stays on one server, because a stage keeps state between calls"


def _due_words(view: PipelineView, target: SlowTarget) -> str:
    """Why there are more servers or instances than the load needs."""
    due = view.estimate.due_rise
    kept = target.desired != target.lasting or view.jump_rps > view.estimate.recent_rps
    return due.sentence if due is not None and kept else ""


def _burst_words(state: PipelineState, view: PipelineView) -> str:
    """Why there are more servers than the load needs, where that is recurring bursts."""
    ready_rps = state.bursts.ready_for_rps(view.at_s, view.rules.config.policy.scale_up.burst_memory_s)
    if ready_rps <= view.estimate.stable_rps:
        return ""
    return f"servers are kept for bursts of {ready_rps:.0f}/s, because recurring bursts made {view.pipeline.name} miss its SLO"


def _in_reach(view: PipelineView) -> tuple[int, ...]:
    """The places that carry the load after one initialisation: the ready ones and those being added to running servers."""
    return tuple(ready + view.extending for ready in view.ready) if len(view.groups) == 1 else view.ready


def _lead_s(view: PipelineView) -> float:
    """How long a new place takes from the counted arrivals on: an initialisation while servers reach further devices, else a launch."""
    return view.age_s + (view.rules.init_s(view.pipeline) if view.within_reach else view.rules.launch_s(view.pipeline))


def _growth_demand(state: PipelineState, view: PipelineView, fast: Demand) -> tuple[Demand, PipelineState]:
    """The demand that instances are sized for: the whole surge's, where they must grow while requests wait.

    The next change of the model waits until its queue was empty, so a growth that only suffices now cannot be corrected in time.
    For the same reason the first tick of a steep rise requests no growth: it has seen too little of the surge to size it.
    """
    policy, rules, estimate = view.rules.config.policy, view.rules, view.estimate
    if rules.whole_changes or not _needs_growth(view, fast):
        return fast, replaced(state, exceeded_since_s=None)
    since_s = view.at_s if state.exceeded_since_s is None else state.exceeded_since_s
    state = replaced(state, exceeded_since_s=since_s)
    steep = estimate.newest_rps > policy.scale_up.steep_rise_factor * estimate.stable_rps
    if steep and view.at_s - since_s < policy.tick_s / 2.0:
        return NO_DEMAND, state
    if backlog_of(estimate, policy) == 0.0:
        return fast, state
    surge = surge_demand(estimate, policy, rules.init_s(view.pipeline) + view.age_s, view.capacity_rps)
    return max(fast, surge, key=Demand.with_headroom_rps), state


def _at_jump(view: PipelineView, growth: Demand) -> Demand:
    """The demand that instances are sized for, at least what a recurring rise that is due jumps to: no growth would be in time for that."""
    if growth is NO_DEMAND or view.jump_rps <= growth.rate_rps:
        return growth
    return max(growth, growth._replace(rate_rps=view.jump_rps, extra_rps=0.0), key=Demand.with_headroom_rps)


def _needs_growth(view: PipelineView, fast: Demand) -> bool:
    """Whether the demand needs more instances than run. Bursts may need more below the capacity, which is that for Poisson arrivals."""
    if fast.with_headroom_rps() > view.capacity_rps:
        return True
    return view.serves and grows(view, instances_of(view.in_place(fast, _in_reach(view)).stages))


def _stabilized_instances(
    state: PipelineState, view: PipelineView, now: VerticalTarget | None, fast: Demand
) -> tuple[tuple[int, ...], bool, PipelineState]:
    """Instances a stage, and whether servers may shrink to them: growth at once, shrinking after the stabilization window.

    Nothing shrinks while demand grows: a shrink occupies the actuator for seconds. Where their effect shows within a tick, no
    stabilization is needed.
    """
    policy = view.rules.config.policy
    if now is None:
        return view.instances_now, False, state
    if view.prompt and policy.scale_down.shrink_stabilization_s <= policy.tick_s:
        return instances_of(now.stages), True, state
    hold_s = max(policy.scale_down.shrink_stabilization_s, _standby_s(view))
    state = state.with_sample(DemandSample(view.at_s, instances_of(now.stages), view.ready), hold_s)
    steady = fast.extra_rps <= policy.scale_down.steady_growth_threshold * fast.rate_rps
    covered = view.at_s - state.samples[0].at_s >= hold_s
    return state.max_instances_needed(), steady and covered, state


def _standby_s(view: PipelineView) -> float:
    """How long an idle instance stays loaded for the next burst: until it has cost what its removal and its return are expected to lose."""
    rules = view.rules
    largest_price = max(instance_price(rules.config.models[stage], rules.config) for stage in view.pipeline.stages)
    risk = rules.config.prices.grow_risk + rules.config.prices.shrink_risk
    horizon_s = rules.config.policy.plan_horizon_s
    return min(horizon_s, risk / largest_price) if largest_price > 0.0 else horizon_s


def _survivors(view: PipelineView, fast: Demand, instances: tuple[int, ...], retire: tuple[str, ...]) -> tuple[int, ...]:
    """Instances with which the remaining servers carry the load: they grow before a server retires."""
    largest_rps = max(fast.total_rps, survivor_demand(view.estimate, view.rules.config.policy).total_rps)
    plan = view.in_place(fast._replace(rate_rps=largest_rps, extra_rps=0.0), view.without(retire))
    return tuple(map(max, instances, instances_of(plan.stages)))


def _launch_instances(view: PipelineView, demands: tuple[Demand, ...], target: SlowTarget, instances: tuple[int, ...]) -> tuple[int, ...]:
    """Instances of a new server or place: those that all together will need.

    `demands`: of the present growth, and of the time when a server serves. Where changes in place show within a tick, a server starts
    with what the latter needs and grows once it serves: until then instances would only cost.
    """
    if any((*view.ready, *view.coming)) and not view.free_slots and not view.reachable and not view.extending:
        return instances  # none can come; a pipeline without any may be loaded into a running server
    growth, *later = demands
    largest = max(later if view.prompt else (growth, *later), key=lambda demand: demand.total_rps)
    return instances_of(view.in_place(largest, target.desired).stages)


def _sizes(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], batches: tuple[int, ...]) -> tuple[StageSize, ...]:
    """The stages' sizes; where the stabilized count is the planned one, some servers run one instance more."""
    sizes = view.sizes(instances, batches)
    if now is None:
        return sizes
    return tuple(
        replaced(size, extra_instance_servers=planned.extra_instance_servers) if size.instances == planned.instances else size
        for size, planned in zip(sizes, now.stages, strict=True)
    )


def _batches(view: PipelineView, now: VerticalTarget | None, instances: tuple[int, ...], target: SlowTarget) -> tuple[int, ...]:
    """Batch limits; they are raised, which takes a reload, only while the running instances suffice and the cheapest migration does so."""
    if view.rules.dispatcher_sets_batches:
        planned = now or target.plan
        return view.batch_caps if planned is None else batches_of(planned.stages)
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    steady = now is not None and now.feasible and not grows(view, instances)
    reloads = target.migration is not None and any(step.kind is ActionKind.REBATCH for step in target.migration.steps)
    return bounds if steady and reloads else view.batch_caps


def _holds_after_s(view: PipelineView, now: VerticalTarget | None, fast: Demand, launch: tuple[int, ...]) -> float | None:
    """Seconds until the present demand is carried inside the SLO by what this tick asks for; None where it is already, or is unknown."""
    if now is None or view.open_calls or view.rules.config.planning.placement is Placement.SEPARATE:
        return None
    if view.capacity_rps >= fast.total_rps:
        return None
    if now.feasible:
        return view.rules.init_s(view.pipeline)
    return view.rules.launch_s(view.pipeline) if 0 < sum(now.missing) <= sum(launch) + sum(view.coming) else None


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


THEMIS = Policy(PolicyName.THEMIS, propose, waits_for_batches=False, holds_to_predictions=True, lets_rest=True, early_shrinks=True)
