"""The proposals of all pipelines as one target: which pipeline gets which slot, and which gives one up when slots are short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.config import Placement
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Models, Place, with_place
from themis_triton.decide.devices import FreeDevices
from themis_triton.decide.proposal import PolicyResult
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.decide.view import PipelineView
from themis_triton.plan.steps import by_retirement
from themis_triton.solver.slot_allocation import PoolMember, solve_pool


@dataclass(frozen=True, slots=True)
class PipelineProposal:
    """One pipeline's view and the policy's result for it."""

    view: PipelineView
    result: PolicyResult


@dataclass(frozen=True, slots=True)
class Allocation:
    """The joint target of all pipelines."""

    target: Target
    clamps: tuple[Clamp, ...]
    state: PolicyState


@dataclass(frozen=True, slots=True)
class _Shares:
    """Granted new places and launches of each pipeline and group, places given up for another pipeline, and the reasons."""

    extend: tuple[int, ...]
    launch: tuple[tuple[int, ...], ...]
    retire: tuple[str, ...]
    clamps: tuple[Clamp, ...]
    short_since_s: float | None


def allocate(
    state: PolicyState, proposals: Sequence[PipelineProposal], policy_input: PolicyInput, rules: Rules, devices: FreeDevices
) -> Allocation:
    """One target. Where free devices are short, they are divided so that the weighted loss is smallest."""
    shares = _shares(state, proposals, policy_input, rules, devices)
    joined = _Joined(proposals, {server.name: dict(server.models) for server in policy_input.snapshot.servers})
    for each in proposals:
        joined.resize(each)
    for each, count in zip(proposals, shares.extend, strict=True):
        joined.extend(each, count, devices)
    for each, granted in zip(proposals, shares.launch, strict=True):
        for count, models in zip(granted, each.result.proposal.launch_models, strict=True):
            for slot in (next(iter(devices.slots), None) for _ in range(count)):
                if slot is not None:
                    joined.launch[slot] = models
                    devices.take_slot(slot)
    for each in proposals:
        for name in (*shares.retire, *each.result.proposal.retire):
            joined.give_up(name, each)
    states_by_pipeline = {each.view.pipeline.name: each.result.state for each in proposals}
    target = Target(joined.servers, joined.launch, tuple(joined.retire), rules.whole_changes)
    return Allocation(target, shares.clamps, replace(state, pipelines=states_by_pipeline, short_since_s=shares.short_since_s))


@dataclass(slots=True)
class _Joined:
    """The proposals, joined one by one into what each server is to run."""

    proposals: Sequence[PipelineProposal]
    servers: dict[str, Models]
    launch: dict[str, Models] = field(default_factory=dict)
    retire: list[str] = field(default_factory=list)

    def resize(self, each: PipelineProposal) -> None:
        """Set the counts at the pipeline's ready places, and complete those that are being added to running servers."""
        for group in each.view.groups:
            for place in group.ready:
                states = {name: state for name, state in each.result.proposal.servers[place.name].items() if name in group.names}
                self.servers[place.server.name] = with_place(self.servers[place.server.name], place, states)

        for place in each.view.groups[0].coming if len(each.view.groups) == 1 else ():
            if place.extra:
                self._add_place(place, each)

    def _add_place(self, place: Place, each: PipelineProposal) -> None:
        """Give a place what it lacks of the pipeline, with the batching that the server has."""
        now, (models,) = self.servers[place.server.name], each.result.proposal.launch_models
        lacking = {name: state for name, state in models.items() if not now[name].on(place.device)}
        states = {name: replace(now[name], instances=state.instances, spread=()) for name, state in lacking.items()}
        self.servers[place.server.name] = with_place(now, place, states)

    def extend(self, each: PipelineProposal, count: int, devices: FreeDevices) -> None:
        """Add places to running servers, with the batching that they have."""
        if count == 0:
            return
        (group,) = each.view.groups
        for server, device in devices.extensions(group.ready, group.names, count):
            self._add_place(Place(server, device, {}), each)
            devices.take(device, server.name)

    def give_up(self, name: str, each: PipelineProposal) -> None:
        """Retire a server that serves no other pipeline, or remove the pipeline's models from an extra place."""
        place = next((place for group in each.view.groups for place in group.ready if place.name == name), None)
        if place is None:
            return
        others = [other.view for other in self.proposals if other.view is not each.view]
        if place.extra:
            shared = {stage for other in others for stage in other.pipeline.stages}
            gone = {stage: replace(place.models[stage], instances=0) for stage in each.view.pipeline.stages if stage not in shared}
            self.servers[place.server.name] = with_place(self.servers[place.server.name], place, gone)
        elif name not in self.retire and not any(_serves(other, name) for other in others):
            self.retire.append(name)


def _serves(view: PipelineView, server: str) -> bool:
    """Whether a server serves the pipeline."""
    return any(place.server.name == server for group in view.groups for place in group.ready)


def _shares(
    state: PolicyState, proposals: Sequence[PipelineProposal], policy_input: PolicyInput, rules: Rules, devices: FreeDevices
) -> _Shares:
    extend = [min(each.result.proposal.extend, each.view.reachable) for each in proposals]
    requested = [each.result.proposal.launch for each in proposals]
    slots = len(devices.slots)
    free = slots + devices.beyond_slots([place for each in proposals for group in each.view.groups for place in group.ready])
    if sum(map(sum, requested)) <= slots and sum(extend) + sum(map(sum, requested)) <= free:
        return _Shares(tuple(extend), tuple(requested), (), (), None)
    at_s = policy_input.snapshot.at_s
    since_s = at_s if state.short_since_s is None else state.short_since_s
    allotted = _allotted(proposals, free) if rules.config.planning.placement is Placement.COLOCATED and len(proposals) > 1 else None
    granted, left, slots_left, shared = [], free, slots, _shared(proposals)
    for p, each in enumerate(proposals):
        room = left if allotted is None else min(left, max(0, allotted[p] - _pooled(each.view, shared)))
        extend[p] = min(extend[p], room)
        granted.append(_in_turn(requested[p], min(room - extend[p], slots_left)))
        left -= extend[p] + sum(granted[-1])
        slots_left -= sum(granted[-1])
    backing_off = _slots_backing_off(policy_input, rules)
    missing = [sum(r) + p.result.proposal.extend - sum(g) - e for r, p, g, e in zip(requested, proposals, granted, extend, strict=True)]
    clamps = [clamp for each, short in zip(proposals, missing, strict=True) for clamp in _out_of_slots(each, short, backing_off)]
    retire: tuple[str, ...] = ()
    if allotted is not None and at_s - since_s >= rules.config.policy.slot_reallocation_delay_s:
        retire, more = _reallocated(proposals, allotted, missing)
        clamps += more
    return _Shares(tuple(extend), tuple(granted), retire, tuple(clamps), since_s)


def _allotted(proposals: Sequence[PipelineProposal], free: int) -> tuple[int, ...]:
    """Devices of each pipeline in the division with the smallest loss, of the free ones and those of removable places.

    A place that serves several pipelines is nobody's share, and what is busy there is not so on new servers.
    """
    members, shared = [], _shared(proposals)
    for each in proposals:
        view, evidence = each.view, each.result.proposal.evidence
        places = [place for place in view.groups[0].ready if place.server.name not in shared]
        own = sum(not place.removable for place in places)
        demand = max(evidence.demand_fast_rps, evidence.demand_slow_rps)
        problem = replace(view.problem, demand_rps=demand, busy_elsewhere=view.busy_elsewhere if places else 0)
        members.append(PoolMember(problem, view.pipeline.weight, own))
    pool = free + sum(_pooled(each.view, shared) for each in proposals)
    return _with_first_servers(proposals, members, solve_pool(members, pool).devices, pool)


def _with_first_servers(
    proposals: Sequence[PipelineProposal], members: Sequence[PoolMember], shares: Sequence[int], pool: int
) -> tuple[int, ...]:
    """Spare slots go to pipelines without a server, largest weight first: without one, their next request would wait for a cold start."""
    given, left = list(shares), pool - sum(shares)
    for p in sorted(range(len(proposals)), key=lambda p: -members[p].weight):
        if left > 0 and given[p] + members[p].own_devices == 0:
            given[p], left = 1, left - 1
    return tuple(given)


def _shared(proposals: Sequence[PipelineProposal]) -> frozenset[str]:
    """The servers that serve several pipelines."""
    servers = Counter(name for each in proposals for name in {place.server.name for group in each.view.groups for place in group.ready})
    return frozenset(name for name, pipelines in servers.items() if pipelines > 1)


def _pooled(view: PipelineView, shared: frozenset[str]) -> int:
    """Devices of the pipeline's removable places, coming ones included, but those of servers that serve other pipelines too."""
    places = [place for group in view.groups for place in (*group.ready, *group.coming)]
    return sum(place.removable and place.server.name not in shared for place in places)


def _in_turn(requested: tuple[int, ...], room: int) -> tuple[int, ...]:
    """Launches granted to each group while there is room, one each in turn."""
    granted = [0] * len(requested)
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
        if short > 0 and _pooled(each.view, shared) + _requested(each) - short < share
    ]
    for each, share in zip(proposals, allotted, strict=True):
        own = [place for place in each.view.groups[0].ready if place.server.name not in shared]
        removable = [place.name for place in by_retirement(own) if place.removable]
        # A pipeline's last server stays: without one, its next request would wait for a cold start.
        spare = len(each.view.groups[0].ready) > 1
        if lacking and removable and spare and _pooled(each.view, shared) > share and not any(each.view.coming):
            sentence = f"{removable[-1]} of {each.view.pipeline.name} gives its device to {lacking[0]}, where a lost request weighs more"
            return (removable[-1],), [Clamp(ClampKind.DEVICES, sentence)]
    return (), []


def _requested(each: PipelineProposal) -> int:
    """New places that the pipeline asks for."""
    return each.result.proposal.extend + sum(each.result.proposal.launch)


def _slots_backing_off(policy_input: PolicyInput, rules: Rules) -> dict[str, float]:
    """Slots without a server that are in back-off, with the seconds left."""
    launch, snapshot = rules.config.launch, policy_input.snapshot
    taken = {server.slot for server in snapshot.servers}
    slots = [slot.name for slot in launch.slots if slot.name not in taken] if launch is not None else []
    return {slot: snapshot.backing_off[slot] - snapshot.at_s for slot in slots if slot in snapshot.backing_off}


def _out_of_slots(each: PipelineProposal, short: int, backing_off: dict[str, float]) -> list[Clamp]:
    if short <= 0:
        return []
    name, plural = each.view.pipeline.name, "s" if short > 1 else ""
    slots = "".join(
        f"; {slot} is in back-off after a failed launch, for {max(0.0, left_s):.0f} s more" for slot, left_s in backing_off.items()
    )
    return [Clamp(ClampKind.DEVICES, f"{name} requires {short} more server{plural} than there are free slots{slots}")]
