"""Themis: two loops at their own pace. The fast one moves instances in place, the slow one servers towards the cheapest joint plan."""

from __future__ import annotations

from dataclasses import replace

from themis_triton.core.decision import Reason, Stage
from themis_triton.decide.demand import Demand, fast_demand, slow_demand, survivor_demand
from themis_triton.decide.proposal import Judged, Proposal, evidence_of
from themis_triton.decide.state import Need, PipelineMemory
from themis_triton.decide.view import PipelineView
from themis_triton.solver.plans import ChainPlan, VerticalPlan


def propose(memory: PipelineMemory, view: PipelineView) -> Judged:
    """One tick of both loops. A surge is absorbed by instances at once; what they cannot carry is launched at once too."""
    policy = view.rules.config.policy
    servers = len(view.ready)
    fast = fast_demand(view.estimate, policy, view.rules.init_s(view.pipeline))
    slow = slow_demand(view.estimate, policy, view.rules.launch_s(view.pipeline))
    vertical = view.vertical(fast, servers) if servers else None
    instances, release, memory = _held_instances(memory, view, vertical, fast)
    joint = view.joint(slow)
    wanted = max(_servers_wanted(view, vertical, joint), _servers_for_a_surge(view, slow))
    launch = max(0, wanted - servers - len(view.coming))
    memory, retire, why = _scale_in(memory, view, wanted)
    if retire is not None:
        instances = _survivors(view, fast, instances)
    caps = _batch_caps(view, slow, joint, vertical)
    missing = 0 if vertical is None or vertical.feasible else vertical.servers_missing or 1
    predicted = vertical.plan.predicted_p99_ms if vertical is not None else joint.predicted_p99_ms
    runner_up = joint.runner_up.sentence(joint.cost) if joint.runner_up is not None else ""
    return Judged(
        memory,
        Proposal(
            instances=instances,
            batch_caps=caps,
            stage=_stage(view, vertical, instances, launch),
            reason=_reason(view, vertical, instances, launch, retire),
            evidence=evidence_of(view, fast, slow, wanted=wanted, predicted_p99_ms=predicted, missing=missing, runner_up=runner_up),
            launch=launch,
            launch_instances=_launch_instances(view, fast, slow, max(1, wanted)),
            retire=retire,
            release=release,
            detail=why,
        ),
    )


def _held_instances(
    memory: PipelineMemory, view: PipelineView, vertical: VerticalPlan | None, fast: Demand
) -> tuple[tuple[int, ...], bool, PipelineMemory]:
    """Grow at once, release late: the largest need of the last `vertical_hold_s`; whether servers may give up more than that.

    Nothing is released while demand grows or servers come: a shrink occupies the lever for seconds.
    """
    if vertical is None:
        return (), False, memory
    hold_s = view.rules.config.policy.vertical_hold_s
    need = Need(view.at_s, tuple(stage.instances for stage in vertical.plan.stages), len(view.ready))
    kept = tuple(n for n in memory.needs if n.at_s > view.at_s - hold_s and n.servers == need.servers)
    memory = replace(memory, needs=(*kept, need))
    calm = fast.extra_rps <= 0.1 * fast.rate_rps and not view.coming
    settled = view.at_s - memory.needs[0].at_s >= hold_s - 2 * view.rules.config.policy.tick_s
    return memory.held_instances(need.servers), calm and settled, memory


def _servers_wanted(view: PipelineView, vertical: VerticalPlan | None, joint: ChainPlan) -> int:
    """The joint plan's servers, or what the surge needs on top of the ready ones where instances alone cannot carry it."""
    most = view.rules.max_servers
    wanted = joint.servers if joint.feasible else most
    if vertical is not None and not vertical.feasible:
        wanted = max(wanted, len(view.ready) + (vertical.servers_missing or 1))
    return max(1, min(wanted, most))


def _servers_for_a_surge(view: PipelineView, slow: Demand) -> int:
    """The fewest servers whose instances alone could carry `surge_factor` times the slow demand: the fast loop needs room to act in."""
    surge = replace(slow, rate_rps=slow.rate_rps * view.rules.config.policy.surge_factor)
    most = view.rules.max_servers
    return next((servers for servers in range(1, most) if view.vertical(surge, servers).feasible), most)


def _scale_in(memory: PipelineMemory, view: PipelineView, wanted: int) -> tuple[PipelineMemory, str | None, str]:
    """One server leaves when fewer have sufficed for the whole of `scale_in_hold_s` and the survivors carry the recent peak."""
    policy, servers = view.rules.config.policy, len(view.ready)
    memory = memory.with_wanted(view.at_s, wanted, policy.scale_in_hold_s)
    if wanted >= servers or view.coming:
        return memory, None, ""
    left_s = policy.scale_in_hold_s - memory.covered_s(view.at_s)
    if left_s > 0 or memory.most_wanted() >= servers:
        return memory, None, f"{wanted} servers would do, but not for the whole of the last {policy.scale_in_hold_s:.0f} s"
    peak = survivor_demand(view.estimate, policy)
    cheapest = view.joint(peak)
    if not cheapest.feasible or cheapest.servers >= servers:
        # Survivors that would have to grow to their limits cost more than the server that left, and the next surge has it start again.
        return memory, None, f"{wanted} servers would do, but the recent {peak.rate_rps:.0f}/s with a margin is cheaper on {servers}"
    leaving = [server.name for server in view.ready if server.launched]
    return memory, leaving[-1] if leaving else None, "" if leaving else f"{wanted} servers would do, but all are adopted"


def _survivors(view: PipelineView, fast: Demand, instances: tuple[int, ...]) -> tuple[int, ...]:
    """Counts with which one server fewer carries the load: they grow before the server leaves."""
    strongest = max(fast.total_rps, survivor_demand(view.estimate, view.rules.config.policy).total_rps)
    plan = view.vertical(Demand(strongest, 0.0, fast.dispersion), len(view.ready) - 1).plan
    return tuple(max(now, stage.instances) for now, stage in zip(instances, plan.stages, strict=True))


def _launch_instances(view: PipelineView, fast: Demand, slow: Demand, servers: int) -> tuple[int, ...]:
    """A new server starts with the counts that all of them together will need."""
    demand = fast if fast.total_rps > slow.total_rps else slow
    return tuple(stage.instances for stage in view.vertical(demand, servers).plan.stages)


def _batch_caps(view: PipelineView, slow: Demand, joint: ChainPlan, vertical: VerticalPlan | None) -> tuple[int, ...]:
    """Larger batches mean a reload: only in calm, and only where they save `rebatch_gain_fraction` of the cost or make a plan feasible."""
    caps = view.batch_caps
    bounds = tuple(stage.max_batch for stage in view.problem.stages)
    if caps == bounds or not view.ready or vertical is None or not vertical.feasible:
        return caps
    reloaded = view.joint(slow, reload=True)
    gain = view.rules.config.policy.rebatch_gain_fraction
    worth = reloaded.feasible and (not joint.feasible or reloaded.cost < joint.cost * (1.0 - gain))
    return bounds if worth else caps


def _stage(view: PipelineView, vertical: VerticalPlan | None, instances: tuple[int, ...], launch: int) -> Stage:
    growing = any(wanted > now for wanted, now in zip(instances, view.instances_now, strict=False))
    surging = vertical is None or not vertical.feasible or growing or launch > 0
    return Stage.ABSORB if surging else Stage.OPTIMISE


def _reason(view: PipelineView, vertical: VerticalPlan | None, instances: tuple[int, ...], launch: int, retire: str | None) -> Reason:
    if vertical is not None and not vertical.feasible and launch == 0 and not view.coming:
        return Reason.INFEASIBLE
    if launch > 0:
        return Reason.SCALE_OUT
    if retire is not None:
        return Reason.SCALE_IN
    now = view.instances_now
    if any(wanted > count for wanted, count in zip(instances, now, strict=False)):
        return Reason.SURGE
    if any(wanted < count for wanted, count in zip(instances, now, strict=False)):
        return Reason.SETTLE
    return Reason.STEADY
