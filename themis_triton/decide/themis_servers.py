"""The slow loop of the policy `themis`: how many servers and places there shall be, which are new, and which are given up."""

from __future__ import annotations

from operator import add

from themis_triton.core.config import Isolation, Placement
from themis_triton.core.replacing import replaced
from themis_triton.decide.demand import Demand, backlog_of, survivor_demand, trend_rps
from themis_triton.decide.proposal import leaving, to_launch
from themis_triton.decide.slow_target import Circumstances, Planned, SlowTarget
from themis_triton.decide.state import PipelineState
from themis_triton.decide.view import PipelineView
from themis_triton.solver.migration import Migration
from themis_triton.solver.plans import ChainPlan, VerticalTarget, instances_of


def kept_target(
    state: PipelineState, view: PipelineView, now: VerticalTarget | None, demands: tuple[Demand, Demand, Demand]
) -> tuple[PipelineState, SlowTarget]:
    """The target of the fast, the slow and the launch demand: the last one while that holds.

    It holds for `HOLDS_S` while no demand rises, and where it is not the pipeline's turn while none rises much.
    """
    fast, slow, at_launch = demands
    rises = _places_short(view, fast, at_launch)
    burst_rps = state.bursts.ready_for_rps(view.at_s, view.rules.config.policy.scale_up.burst_memory_s)
    circumstances = Circumstances(
        (view.ready, view.coming, view.reachable, view.free_slots > 0, view.batch_caps, rises, view.estimate.due_rise),
        (
            slow.with_headroom_rps(),
            at_launch.with_headroom_rps(),
            fast.with_headroom_rps() if rises else 0.0,
            sum(slow.other_rps),
            sum(at_launch.other_rps),
            burst_rps,
            view.jump_rps,
        ),
    )
    if state.slow is not None and state.slow.holds(view.at_s, circumstances, in_turn=view.in_turn):
        target = state.slow.target
    else:
        target = slow_target(view, fast, slow, at_launch, burst_rps)
        state = replaced(state, slow=Planned(view.at_s, circumstances, target))
    beyond = _beyond_open_calls(view, now, at_launch)
    desired, lasting = (_bounded(_larger(count, beyond), view) for count in (target.desired, target.lasting))
    return state, replaced(target, desired=desired, lasting=lasting)


def slow_target(view: PipelineView, fast: Demand, slow: Demand, at_launch: Demand, burst_rps: float) -> SlowTarget:
    """The plan with the cheapest migration for the slow demand; more servers where instances alone could not carry the launch demand.

    There are always enough servers to carry `burst_headroom_factor` times the rate by adding instances and places, and enough places in
    use to carry `standby_headroom_factor` times the rate: a burst finds their instances at work, and a growth there no new device.
    Once instances must be added, so are the places of the first, all at once: the next change of a model may have to wait until its
    queue is empty. `burst_rps`: the bursts that servers stand ready for. A recurring rise that is due finds places in use for its jump, and
    in reach for its height.
    """
    plan, migration = _cheapest(view, slow)
    desired = view.servers_of(plan.stages) if plan is not None and plan.feasible else view.most_servers(slow)
    surge = slow._replace(rate_rps=slow.rate_rps * view.rules.config.policy.scale_up.burst_headroom_factor)
    rises = _places_short(view, fast, at_launch)
    if rises and view.reachable:
        surge = surge._replace(rate_rps=max(surge.rate_rps, fast.rate_rps * view.rules.config.policy.scale_up.burst_headroom_factor))
    later = 0 if rises else view.reachable
    reserve = view.fewest_servers(surge)
    desired = _larger(desired, _larger(tuple(max(1, count - later) for count in reserve), view.fewest_servers(at_launch)))
    if later:
        standby = slow._replace(rate_rps=slow.rate_rps * view.rules.config.policy.scale_up.standby_headroom_factor)
        desired = _larger(desired, view.fewest_servers(standby))
    if len(view.groups) > 1 and sum(desired) > view.rules.max_servers:  # stages that are separate share what can exist
        desired = view.most_servers(max(slow, surge, at_launch, key=Demand.with_headroom_rps))
    desired = _larger(desired, _at_peak(view, slow, burst_rps, later))
    due = view.estimate.due_rise
    expecting = _larger(desired, _at_peak(view, slow, due.peak_rps if due is not None else 0.0, later))
    at_jump = _at_peak(view, slow, view.jump_rps, 0)
    return SlowTarget(_larger(expecting, at_jump), plan, migration, reserve, rises, desired)


def _at_peak(view: PipelineView, slow: Demand, peak_rps: float, later: int) -> tuple[int, ...]:
    """The places that carry a rise to a rate which may begin soon, by adding instances and `later` places."""
    if peak_rps <= slow.rate_rps:
        return (0,) * len(view.groups)
    return tuple(max(0, count - later) for count in view.fewest_servers(slow._replace(rate_rps=peak_rps)))


def _cheapest(view: PipelineView, slow: Demand) -> tuple[ChainPlan | None, Migration | None]:
    """The plan for the demand, that with the cheapest migration where one is needed. Servers that serve need no best effort."""
    if not view.serves or view.rules.config.planning.placement is Placement.SEPARATE:
        return view.joint(slow), None
    plan = view.find_joint(slow)
    if plan is not None and not _moves(view, plan):
        return plan, None
    migration = view.find_migration(slow) if plan is None else view.migration(slow)
    return (plan, None) if migration is None else (migration.plan, migration)


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
    return tuple(map(add, view.ready, view.fewest_servers(at_launch._replace(rate_rps=missing_rps, extra_rps=0.0, sigmas=0.0))))


def _moves(view: PipelineView, plan: ChainPlan) -> bool:
    """Whether the plan needs other servers than the ready ones, or a reload would allow larger batches."""
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    return view.servers_of(plan.stages) != view.ready or view.batch_caps != bounds


def _larger(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(max, one, other))


def _bounded(desired: tuple[int, ...], view: PipelineView) -> tuple[int, ...]:
    """At most the servers that can exist, and within the pipeline's bounds; separate stages are bounded when slots run out.

    With a stateful stage the one server stays as it is.
    """
    if view.one_server:
        return tuple(max(1, ready) for ready in view.ready)
    fewest, most = view.pipeline.min_servers, view.max_places
    return tuple(max(1, min(max(count, fewest), most)) for count in desired)


def _rises(view: PipelineView, fast: Demand) -> bool:
    """Whether the demand exceeds what the ready places carry."""
    return view.serves and fast.with_headroom_rps() > view.capacity_rps


def _places_short(view: PipelineView, fast: Demand, at_launch: Demand) -> bool:
    """Whether the demand exceeds what the ready places carry: where servers reach more, with all instances that these can have."""
    if view.within_reach:
        return view.serves and view.fewest_servers(at_launch)[0] > view.ready[0]
    return _rises(view, fast)


def settled(view: PipelineView, fast: Demand) -> bool:
    """Whether the ready places carry the demand, and it shows no rise."""
    policy = view.rules.config.policy
    steady = fast.extra_rps <= policy.scale_down.steady_growth_threshold * fast.rate_rps
    return steady and not _rises(view, fast) and trend_rps(view.estimate, policy, view.rules.launch_s(view.pipeline)) == 0.0


def new_places(view: PipelineView, now: VerticalTarget | None, target: SlowTarget, *, may_grow: bool) -> tuple[int, tuple[int, ...]]:
    """(places to add to running servers, servers to launch a group).

    A new place takes an initialisation, a server a cold start: running servers take all that is desired as far as they reach.
    """
    wanted = to_launch(view, target.desired)
    if len(view.groups) > 1:
        return 0, wanted
    missing = max(0, sum(now.missing) if now is not None else 0)
    # A server that launches is no help yet.
    near = target.desired[0] - view.ready[0] - view.extending if target.rises else wanted[0]
    extend = min(view.reachable, max(missing, near, 0), max(0, view.max_places - view.ready[0] - view.extending))
    return extend if may_grow else 0, (max(0, wanted[0] - extend),)


def isolated(view: PipelineView, target: SlowTarget) -> tuple[int, ...]:
    """Servers to launch with `isolation: process` once the load is carried: one for each place that shares a process.

    As far as slots are free, and as running servers then still reach what a surge would take.
    """
    launch = view.rules.config.launch
    if launch is None or launch.isolation is Isolation.NONE or len(view.groups) > 1 or view.extending:
        return ()
    processes = view.ready[0] - view.extra + view.coming[0]
    spare = min(view.free_slots, view.reachable) - max(0, target.reserve[0] - view.ready[0])
    return (max(0, min(target.desired[0] - processes, spare)),)


def scale_in(state: PipelineState, view: PipelineView, target: SlowTarget) -> tuple[PipelineState, tuple[str, ...], str]:
    """Servers to retire: once fewer have sufficed for the stabilization window and the others carry the recent peak.

    Those that waited for a recurring rise may retire as soon as it is due no more: its next time is known.
    """
    state = state.with_desired(view.at_s, target.lasting, _hold_s(view))
    if view.pipeline.max_servers is not None and max(view.ready) > view.max_places and not view.one_server:
        return state, *_beyond_bounds(view)
    return _scale_in(state, view, target.desired)


def _beyond_bounds(view: PipelineView) -> tuple[tuple[str, ...], str]:
    retire = leaving(view, tuple(min(ready, view.max_places) for ready in view.ready))
    words = f"{view.pipeline.name} is bounded to {view.max_places} {view.unit}{'' if view.max_places == 1 else 's'}"
    return retire, words if retire or any(view.coming) else f"{words}, but the others are adopted"


def _scale_in(state: PipelineState, view: PipelineView, desired: tuple[int, ...]) -> tuple[PipelineState, tuple[str, ...], str]:
    policy, hold_s = view.rules.config.policy, _hold_s(view)
    if all(count >= ready for count, ready in zip(desired, view.ready, strict=True)) or (len(view.groups) == 1 and any(view.coming)):
        return state, (), ""
    suffices = f"{_counted(desired)} {view.unit} suffices" if sum(desired) == 1 else f"{_counted(desired)} {view.unit}s suffice"
    left_s = hold_s - state.covered_s(view.at_s)
    if left_s > 0:
        return state, (), f"{suffices}; scale-in in {left_s:.0f} s if that lasts"
    if all(count >= ready for count, ready in zip(_larger(state.max_desired(), desired), view.ready, strict=True)):
        return state, (), f"{suffices}, but not throughout the last {hold_s:.0f} s"
    peak = survivor_demand(view.estimate, policy)
    cheapest = view.joint(peak)
    kept = _larger(_larger(state.max_desired(), desired), view.servers_of(cheapest.stages) if cheapest.feasible else view.ready)
    retire = leaving(view, kept)
    if retire:
        return state, retire, ""
    if all(count >= ready for count, ready in zip(kept, view.ready, strict=True)):
        # Remaining servers at their limits would cost more than the retired one, and the next surge would launch it again.
        return state, (), f"{suffices}, but the recent {peak.rate_rps:.0f}/s with a margin is cheaper on {_counted(view.ready)}"
    return state, (), f"{suffices}, but all servers are adopted"


def _hold_s(view: PipelineView) -> float:
    """How long fewer servers must have sufficed: longer where only a launch would bring one back."""
    scale_down = view.rules.config.policy.scale_down
    if view.within_reach or view.extra:
        return scale_down.scale_in_stabilization_s
    return max(scale_down.scale_in_stabilization_s, scale_down.scale_in_launch_multiple * view.rules.launch_s(view.pipeline))


def _counted(servers: tuple[int, ...]) -> str:
    return " + ".join(map(str, servers))
