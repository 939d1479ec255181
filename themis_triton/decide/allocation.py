"""The proposals of all pipelines as one target: which pipeline gets which slot, and which gives one up when slots are short."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.config import Placement
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Models, Phase, Place, Server, with_place
from themis_triton.core.observation import Snapshot
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
    joined = _Joined(proposals, policy_input.snapshot, devices, state.changed_places)
    for each in proposals:
        joined.resize(each)
    for each, count in zip(proposals, shares.extend, strict=True):
        joined.extend(each, count)
    for each, granted in zip(proposals, shares.launch, strict=True):
        joined.launch_servers(each, granted)
    joined.give_up([(*_given(each, shares.retire), *each.result.proposal.retire) for each in proposals])
    joined.remove_remains()
    pipelines = {each.view.pipeline.name: each.result.state for each in proposals}
    target = Target(joined.servers, joined.launch, tuple(joined.retire), rules.whole_changes)
    return Allocation(target, shares.clamps, PolicyState(pipelines, shares.short_since_s, joined.present_changes()))


def _given(each: PipelineProposal, retire: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the places that the pipeline gives up for another."""
    return tuple(place.name for group in each.view.groups for place in group.ready if place.name in retire)


@dataclass(slots=True)
class _Joined:
    """The proposals, joined one by one into what each server is to run.

    `changed`: servers with devices, see `PolicyState`. `wanted`: the pipelines' models by server and device, where they are to stay.
    """

    proposals: Sequence[PipelineProposal]
    snapshot: Snapshot
    devices: FreeDevices
    changed: frozenset[tuple[str, str]]
    servers: dict[str, Models] = field(init=False)
    launch: dict[str, Models] = field(default_factory=dict)
    retire: list[str] = field(default_factory=list)
    wanted: dict[tuple[str, str], set[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.servers = {server.name: dict(server.models) for server in self.snapshot.servers}

    def resize(self, each: PipelineProposal) -> None:
        """Set the counts at the pipeline's ready places, and complete those that are being added to running servers."""
        for group in each.view.groups:
            for place in group.ready:
                states = {name: state for name, state in each.result.proposal.servers[place.name].items() if name in group.names}
                self.servers[place.server.name] = with_place(self.servers[place.server.name], place, states)
            for place in group.coming:
                if place.extra and len(each.view.groups) == 1:
                    self._add_place(place, each)

    def _add_place(self, place: Place, each: PipelineProposal) -> None:
        """Give a place what it lacks of the pipeline, with the batching that the server has."""
        now, (models,) = self.servers[place.server.name], each.result.proposal.launch_models
        lacking = {name: state for name, state in models.items() if not now[name].on(place.device)}
        states = {name: replace(now[name], instances=state.instances, spread=()) for name, state in lacking.items()}
        self.servers[place.server.name] = with_place(now, place, self.devices.fitting(place.device, states))
        self.wanted.setdefault((place.server.name, place.device), set()).update(models)
        self.changed |= {(place.server.name, place.device)}

    def extend(self, each: PipelineProposal, count: int) -> None:
        """Add places to running servers."""
        for group in each.view.groups if count else ():
            for server, device in self.devices.extensions(group.ready, group.names, count):
                self._add_place(Place(server, device, {}), each)
                self.devices.take(device, server.name)

    def launch_servers(self, each: PipelineProposal, granted: Sequence[int]) -> None:
        """Launch servers of each group on the next free slots."""
        for count, models in zip(granted, each.result.proposal.launch_models, strict=True):
            for slot in (next(iter(self.devices.slots), None) for _ in range(count)):
                if slot is not None:
                    self.launch[slot] = models
                    self.devices.take_slot(slot)

    def give_up(self, names: Sequence[tuple[str, ...]]) -> None:
        """Retire servers that serve no other pipeline, and note where models are to stay; `names`: places by pipeline."""
        for each, given in zip(self.proposals, names, strict=True):
            others = [other.view for other in self.proposals if other.view is not each.view]
            for group in each.view.groups:
                for place in group.ready:
                    key = (place.server.name, place.device)
                    if place.name not in given:
                        self.wanted.setdefault(key, set()).update(group.names)
                    elif place.extra:
                        self.changed |= {key}
                    elif place.name not in self.retire and not any(_serves(other, place.name) for other in others):
                        self.retire.append(place.name)

    def remove_remains(self) -> None:
        """Remove models from extra devices where no pipeline is to keep them: a place is removed, or was never completed.

        Devices that the policy has not changed are left as their owner filled them.
        """
        for server in self.snapshot.servers:
            changing = any(actuator.startswith(f"{server.name}/") for actuator in self.snapshot.busy)
            for device in server.reach if server.phase is Phase.SERVING else ():
                if server.launched or (server.name, device) in self.changed:
                    self._remove_remains(server, device, changing=changing)

    def _remove_remains(self, server: Server, device: str, *, changing: bool) -> None:
        ready = {p.device for each in self.proposals for group in each.view.groups for p in group.ready if p.server.name == server.name}
        if "" in ready or (changing and device not in ready):
            return  # what is there is needed there, or may be half of a change under way
        now, wanted = self.servers[server.name], self.wanted.get((server.name, device), set())
        stages = {stage for each in self.proposals for stage in each.view.pipeline.stages} - wanted
        gone = {name: replace(state, instances=0, spread=()) for name, state in now.items() if name in stages and state.on(device)}
        self.servers[server.name] = with_place(now, Place(server, device, {}), gone)

    def present_changes(self) -> frozenset[tuple[str, str]]:
        """The changed places of servers that exist."""
        return frozenset(key for key in self.changed if key[0] in self.servers)


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
    given = [count + sum(launches) for count, launches in zip(extend, granted, strict=True)]
    missing = [_requested(each) - count for each, count in zip(proposals, given, strict=True)]
    clamps = [clamp for each, count in zip(proposals, given, strict=True) for clamp in _out_of_slots(each, count, free, backing_off)]
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


def _out_of_slots(each: PipelineProposal, granted: int, free: int, backing_off: dict[str, float]) -> list[Clamp]:
    requested = _requested(each)
    if requested <= granted:
        return []
    plural, unit = "s" if requested > 1 else "", each.view.unit
    slots = "".join(
        f"; {slot} is in back-off after a failed launch, for {max(0.0, left_s):.0f} s more" for slot, left_s in backing_off.items()
    )
    asked = f"{each.view.pipeline.name} requires {requested} more {unit}{plural}"
    return [Clamp(ClampKind.DEVICES, f"{asked} and gets {granted} of {free} free {unit if unit == 'device' else 'slot'}s{slots}")]
