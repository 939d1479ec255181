"""The proposals of all pipelines as one target: which pipeline gets which slot, and which gives one up when slots are short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from themis_triton.core.config import Placement
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Phase
from themis_triton.core.observation import launch_of
from themis_triton.core.replacing import replaced
from themis_triton.decide import leaving
from themis_triton.decide.combined_target import CombinedTarget, PipelineProposal
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.plan_query import rounded_up_rps
from themis_triton.decide.rules import Rules
from themis_triton.decide.slow_target import Circumstances
from themis_triton.decide.state import Division, PolicyInput, PolicyState
from themis_triton.decide.view import PipelineView
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.slot_allocation import PoolMember, divide_pool

LEAVING = frozenset({Phase.DRAINING, Phase.STOPPING})
POOL_FRACTION = 0.05  # step of the demands by which devices are divided, so that what a pipeline makes of them is often known
DIVIDE_EVERY_S = 1.0
"""Devices are divided anew so often, and at once when the pool has changed or a demand has risen much."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """The joint target of all pipelines."""

    target: Target
    clamps: tuple[Clamp, ...]
    state: PolicyState


@dataclass(frozen=True, slots=True)
class _Shares:
    """Granted new places and launches of each pipeline and group, places given up for another pipeline, and the reasons.

    `division`: of the devices, where these are short.
    """

    extend: tuple[int, ...]
    launch: tuple[tuple[int, ...], ...]
    retire: tuple[str, ...]
    clamps: tuple[Clamp, ...]
    short_since_s: float | None
    division: Division | None = None


def allocate(
    state: PolicyState, proposals: Sequence[PipelineProposal], policy_input: PolicyInput, rules: Rules, devices: FreeDevices
) -> Allocation:
    """One target. Where free devices are short, they are divided so that the weighted loss is smallest."""
    shares = _shares(state, proposals, policy_input, rules, devices)
    combined = CombinedTarget(proposals, policy_input.snapshot, devices, state.changed_places)
    combined.leave(leaving.idle(leaving.pairs_left([each.view for each in proposals]), policy_input.snapshot), rules)
    for each in proposals:
        combined.resize(each)
    for each, count in zip(proposals, shares.extend, strict=True):
        combined.extend(each, count)
    combined.launch_all(shares.launch)
    clamps = (*shares.clamps, *combined.share_launches(shares.launch), *combined.share_running(shares.launch))
    combined.give_up([(*_given(each, shares.retire), *each.result.proposal.retire) for each in proposals])
    combined.remove_remains()
    pipelines = {each.view.pipeline.name: each.result.state for each in proposals}
    target = Target(combined.servers, combined.launch, tuple(combined.retire), rules.whole_changes)
    return Allocation(target, clamps, PolicyState(pipelines, shares.short_since_s, combined.present_changes(), division=shares.division))


def _given(each: PipelineProposal, retire: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the places that the pipeline gives up for another."""
    if not retire:
        return ()
    return tuple(place.name for group in each.view.groups for place in group.ready if place.name in retire)


def _shares(
    state: PolicyState, proposals: Sequence[PipelineProposal], policy_input: PolicyInput, rules: Rules, devices: FreeDevices
) -> _Shares:
    extend = [min(each.result.proposal.extend, each.view.reachable) for each in proposals]
    requested = [_launchable(each, devices) for each in proposals]
    slots = len(devices.slots)
    free = slots + devices.beyond_slots([place for each in proposals for group in each.view.groups for place in group.ready])
    taken = [max(0, count - each.view.begun) for count, each in zip(extend, proposals, strict=True)]
    if sum(map(sum, requested)) <= slots and sum(taken) + sum(map(sum, requested)) <= free:
        rows = zip(proposals, extend, requested, strict=True)
        unable = [(each, count + sum(own)) for each, count, own in rows if sum(own) < sum(each.launches)]
        clamps = [clamp for each, count in unable for clamp in _out_of_slots(each, count, free, devices, rules)]
        return _Shares(tuple(extend), tuple(requested), (), tuple(clamps), None)
    at_s = policy_input.snapshot.at_s
    # A device that is being given up is still to come: without waiting for it, the division would take one more each tick.
    leaves = any(server.phase in LEAVING for server in policy_input.snapshot.servers)
    since_s = at_s if state.short_since_s is None or leaves else state.short_since_s
    pooled = rules.config.planning.placement is Placement.COLOCATED and len(proposals) > 1
    division = _divided(state.division, proposals, free, at_s) if pooled else None
    allotted = _handed_on(proposals, requested, division.shares) if division is not None else None
    granted, left, slots_left, shared = [], free, slots, _shared(proposals)
    needed = [sum(map(min, own, each.view.lacking)) for each, own in zip(proposals, requested, strict=True)]
    firsts = needed if allotted is None else [0] * len(proposals)
    for p, each in enumerate(proposals):
        room = left if allotted is None else min(left, max(0, allotted[p] - _pooled(each.view, shared)))
        extend[p] = min(extend[p], each.view.begun + room)
        taken[p] = max(0, extend[p] - each.view.begun)
        kept = sum(firsts[p + 1 :])
        granted.append(_in_turn(requested[p], min(room - taken[p], slots_left) - kept, _firsts(each.view)))
        left -= taken[p] + sum(granted[-1])
        slots_left -= sum(granted[-1])
    given = [count + sum(launches) for count, launches in zip(extend, granted, strict=True)]
    missing = [each.result.proposal.extend + sum(own) - count for each, own, count in zip(proposals, requested, given, strict=True)]
    clamps = [clamp for each, count in zip(proposals, given, strict=True) for clamp in _out_of_slots(each, count, free, devices, rules)]
    retire: tuple[str, ...] = ()
    if allotted is not None and at_s - since_s >= rules.config.policy.slot_reallocation_delay_s:
        retire, more = _reallocated(proposals, allotted, missing)
        clamps += more
    return _Shares(tuple(extend), tuple(granted), retire, tuple(clamps), since_s, division)


def _launchable(each: PipelineProposal, devices: FreeDevices) -> tuple[int, ...]:
    """The launches of a pipeline by group, as many as there are free slots on which they do not rest."""
    if not any(each.result.proposal.launch):
        return each.result.proposal.launch
    models = each.result.proposal.launch_models
    return tuple(_limited(count, len(devices.slots_for(own)), devices) for count, own in zip(each.launches, models, strict=True))


def _limited(count: int, usable: int, devices: FreeDevices) -> int:
    return count if usable == len(devices.slots) else min(count, usable)


def _handed_on(proposals: Sequence[PipelineProposal], requested: Sequence[tuple[int, ...]], allotted: Sequence[int]) -> list[int]:
    """The shares of devices, where those that pipelines cannot use, because their launches rest, go to others, the weightiest first."""
    shared, given = _shared(proposals), list(allotted)
    usable = [_pooled(each.view, shared) + sum(own) for each, own in zip(proposals, requested, strict=True)]
    limited = [sum(own) < sum(each.launches) for each, own in zip(proposals, requested, strict=True)]
    spare = 0
    for p in (p for p, rests in enumerate(limited) if rests):
        spare += max(0, given[p] - usable[p])
        given[p] = min(given[p], usable[p])
    for p in sorted(range(len(given)), key=lambda p: -proposals[p].view.pipeline.weight):
        more = min(spare, max(0, usable[p] - given[p]))
        given[p], spare = given[p] + more, spare - more
    return given


def _divided(kept: Division | None, proposals: Sequence[PipelineProposal], free: int, at_s: float) -> Division:
    """Devices of each pipeline in the division with the smallest loss, of the free ones and those of removable places.

    A place that serves several pipelines is nobody's share, and what is busy there is not so on new servers.
    """
    shared, every = _shared(proposals), [each.result.proposal.evidence for each in proposals]
    pool = free + sum(_pooled(each.view, shared) for each in proposals)
    places = [[place for place in each.view.groups[0].ready if place.server.name not in shared] for each in proposals]
    own = tuple(sum(not place.removable for place in each) for each in places)
    demands = tuple(rounded_up_rps(max(each.demand_fast_rps, each.demand_slow_rps), POOL_FRACTION) for each in every)
    now = Circumstances((pool, own, tuple(each.pipeline for each in every)), demands)
    if kept is not None and at_s - kept.at_s < DIVIDE_EVERY_S and now.hardly_differ_from(kept.since):
        return kept
    members = []
    for each, ready, count, demand in zip(proposals, places, own, demands, strict=True):
        problem = replaced(each.view.problem, demand_rps=demand, busy_elsewhere=each.view.counted_elsewhere if ready else 0)
        members.append(PoolMember(problem, each.view.pipeline.weight, count))
    shares = divide_pool(members, pool, proposals[0].view.planner.remembered)
    return Division(at_s, now, _within_bounds(proposals, members, _with_first_servers(proposals, members, shares, pool)))


def _with_first_servers(
    proposals: Sequence[PipelineProposal], members: Sequence[PoolMember], shares: Sequence[int], pool: int
) -> tuple[int, ...]:
    """Spare slots go to pipelines without a server, largest weight first: without one, their next request would wait for a cold start."""
    given, left = list(shares), pool - sum(shares)
    for p in sorted(range(len(proposals)), key=lambda p: -members[p].weight):
        if left > 0 and given[p] + members[p].own_devices == 0:
            given[p], left = 1, left - 1
    return tuple(given)


def _within_bounds(proposals: Sequence[PipelineProposal], members: Sequence[PoolMember], shares: Sequence[int]) -> tuple[int, ...]:
    """The shares, at least with the servers that a pipeline is bounded to; the largest other shares give them up."""
    fewest = [max(0, each.view.pipeline.min_servers - member.own_devices) for each, member in zip(proposals, members, strict=True)]
    given = list(shares)
    bounded = [p for p, each in enumerate(proposals) if each.view.pipeline.min_servers > 1]
    for p in bounded:
        while given[p] < fewest[p]:
            giver = max(range(len(given)), key=lambda q: given[q] - fewest[q])
            if given[giver] <= fewest[giver]:
                break
            given[giver], given[p] = given[giver] - 1, given[p] + 1
    return tuple(given)


def _shared(proposals: Sequence[PipelineProposal]) -> frozenset[str]:
    """The servers that serve several pipelines."""
    servers = Counter(name for each in proposals for name in {place.server.name for group in each.view.groups for place in group.ready})
    return frozenset(name for name, pipelines in servers.items() if pipelines > 1)


def _pooled(view: PipelineView, shared: frozenset[str]) -> int:
    """Devices of the pipeline's removable places, coming ones included, but those of servers that serve other pipelines too."""
    places = [place for group in view.groups for place in (*group.ready, *group.coming)]
    return sum(place.removable and place.server.name not in shared for place in places)


def _firsts(view: PipelineView) -> list[int]:
    """The groups without a server, the slowest first: where slots are short, the others share servers."""
    stages = [sum(view.problem.stages[s].surface.latency_ms[0, 0] for s in group.stages) for group in view.groups]
    return sorted((g for g, lacks in enumerate(view.lacking) if lacks), key=lambda g: -stages[g])


def _in_turn(requested: tuple[int, ...], room: int, firsts: Sequence[int]) -> tuple[int, ...]:
    """Launches granted to each group while there is room: the first servers of those without any, then one each in turn."""
    granted = [0] * len(requested)
    for g in [g for g in firsts if requested[g]][: max(0, room)]:
        granted[g], room = 1, room - 1
    while room > 0 and any(given < count for given, count in zip(granted, requested, strict=True)):
        for g, count in enumerate(requested):
            if granted[g] < count and room > 0:
                granted[g], room = granted[g] + 1, room - 1
    return tuple(granted)


def _reallocated(
    proposals: Sequence[PipelineProposal], allotted: Sequence[int], missing: Sequence[int]
) -> tuple[tuple[str, ...], list[Clamp]]:
    """One place to give up by a pipeline above its share, while another pipeline lacks places within its share."""
    shared = _shared(proposals)
    lacking = [
        each.view.pipeline.name
        for each, share, short in zip(proposals, allotted, missing, strict=True)
        if short > 0 and _pooled(each.view, shared) + each.requested - short < share
    ]
    for each, share in zip(proposals, allotted, strict=True):
        own = [place for place in each.view.groups[0].ready if place.server.name not in shared]
        removable = [place.name for place in by_retirement(own, each.view.rules.config.launch) if place.removable]
        # A pipeline's last server stays: without one, its next request would wait for a cold start.
        spare = len(each.view.groups[0].ready) > each.view.pipeline.min_servers
        if lacking and removable and spare and _pooled(each.view, shared) > share and not any(each.view.coming):
            sentence = f"{removable[-1]} of {each.view.pipeline.name} gives its device to {lacking[0]}, where a lost request weighs more"
            return (removable[-1],), [Clamp(ClampKind.DEVICES, sentence)]
    return (), []


def _slots_backing_off(each: PipelineProposal, devices: FreeDevices, rules: Rules) -> list[str]:
    """Slots without a server that are in back-off, or on which launches with the pipeline's models rest, in words."""
    launch, snapshot = rules.config.launch, devices.snapshot
    taken = {server.slot for server in snapshot.servers}
    slots = [slot.name for slot in launch.slots if slot.name not in taken] if launch is not None else []
    words = [snapshot.backoff_words(slot) for slot in slots if slot in snapshot.backing_off]
    resting: dict[str, list[str]] = {}
    for actuator in (launch_of(slot, model) for slot in slots for model in each.view.pipeline.stages):
        if actuator in snapshot.resting:
            resting.setdefault(snapshot.resting[actuator], []).append(actuator)
    return words + [f"{', '.join(names)} rest{'s' if len(names) == 1 else ''}: {why}" for why, names in resting.items()]


def _bound_to(each: PipelineProposal) -> list[str]:
    """The node types to which the settings bind models of the pipeline, in words."""
    models = [each.view.rules.config.models[stage] for stage in each.view.pipeline.stages]
    return [f"{model.name} is bound to node type {' or '.join(model.node_types)}" for model in models if model.node_types]


def _out_of_slots(each: PipelineProposal, granted: int, free: int, devices: FreeDevices, rules: Rules) -> list[Clamp]:
    requested = each.requested
    if requested <= granted:
        return []
    plural, unit = "s" if requested > 1 else "", each.view.unit
    slots = "".join(f"; {words}" for words in (*_slots_backing_off(each, devices, rules), *_bound_to(each)))
    free -= len(devices.slots) - max(len(devices.slots_for(group.names)) for group in each.view.groups)
    asked, free = f"{each.view.pipeline.name} requires {requested} more {unit}{plural}", free + each.view.begun
    return [Clamp(ClampKind.DEVICES, f"{asked} and gets {granted} of {free} free {unit if unit == 'device' else 'slot'}s{slots}")]
