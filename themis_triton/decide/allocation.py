"""The proposals of all pipelines as one target: which pipeline gets which slot, and which gives one up when slots are short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import Placement
from themis_triton.core.decision import Clamp, ClampKind, Target
from themis_triton.core.fleet import Models
from themis_triton.decide.proposal import PolicyResult
from themis_triton.decide.rules import Rules
from themis_triton.decide.state import PolicyInput, PolicyState
from themis_triton.decide.view import PipelineView
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
    """Granted launches of each pipeline and group, servers that retire for another pipeline, and the reasons."""

    launch: tuple[tuple[int, ...], ...]
    retire: tuple[str, ...]
    clamps: tuple[Clamp, ...]
    short_since_s: float | None


def allocate(state: PolicyState, proposals: Sequence[PipelineProposal], policy_input: PolicyInput, rules: Rules) -> Allocation:
    """One target. Where free slots are short, they are divided so that the weighted loss is smallest."""
    free = list(free_slots(policy_input, rules))
    shares = _shares(state, proposals, len(free), policy_input, rules)
    servers: dict[str, Models] = {s.name: dict(s.models) for s in policy_input.snapshot.servers}
    launch: dict[str, Models] = {}
    retire = list(shares.retire)
    for each, granted in zip(proposals, shares.launch, strict=True):
        view, proposal = each.view, each.result.proposal
        for name, models in proposal.servers.items():
            servers[name] |= models
        for count, models in zip(granted, proposal.launch_models, strict=True):
            launch |= {free.pop(0): models for _ in range(count)}
        retire += [name for name in proposal.retire if name not in retire and not _serves_others(name, view, proposals)]
    states_by_pipeline = {each.view.pipeline.name: each.result.state for each in proposals}
    target = Target(servers, launch, tuple(retire), rules.whole_changes)
    return Allocation(target, shares.clamps, replace(state, pipelines=states_by_pipeline, short_since_s=shares.short_since_s))


def free_slots(policy_input: PolicyInput, rules: Rules) -> tuple[str, ...]:
    """Slots with no server on them and not in back-off, in the order of the settings."""
    launch, snapshot = rules.config.launch, policy_input.snapshot
    taken = {server.slot for server in snapshot.servers} | snapshot.busy | set(snapshot.backing_off)
    return tuple(slot.name for slot in launch.slots if slot.name not in taken) if launch is not None else ()


def _shares(state: PolicyState, proposals: Sequence[PipelineProposal], free: int, policy_input: PolicyInput, rules: Rules) -> _Shares:
    requested = [each.result.proposal.launch for each in proposals]
    if sum(map(sum, requested)) <= free:
        return _Shares(tuple(requested), (), (), None)
    at_s = policy_input.snapshot.at_s
    since_s = at_s if state.short_since_s is None else state.short_since_s
    allotted = _allotted(proposals, free) if rules.config.planning.placement is Placement.COLOCATED and len(proposals) > 1 else None
    granted, left = [], free
    for p, each in enumerate(proposals):
        room = left if allotted is None else min(left, max(0, allotted[p] - _pooled(each.view)))
        granted.append(_in_turn(requested[p], room))
        left -= sum(granted[-1])
    backing_off = _slots_backing_off(policy_input, rules)
    clamps = [clamp for each, given in zip(proposals, granted, strict=True) for clamp in _out_of_slots(each, sum(given), backing_off)]
    retire: tuple[str, ...] = ()
    if allotted is not None and at_s - since_s >= rules.config.policy.slot_reallocation_delay_s:
        retire, more = _reallocated(proposals, allotted, granted)
        clamps += more
    return _Shares(tuple(granted), retire, tuple(clamps), since_s)


def _allotted(proposals: Sequence[PipelineProposal], free: int) -> tuple[int, ...]:
    """Slots of each pipeline in the division with the smallest loss, of the free ones and those of launched servers."""
    members = []
    for each in proposals:
        view, evidence = each.view, each.result.proposal.evidence
        own = sum(not server.launched for server in view.groups[0].ready)
        demand = max(evidence.demand_fast_rps, evidence.demand_slow_rps)
        problem = replace(view.problem, demand_rps=demand, busy_elsewhere=view.busy_elsewhere)
        members.append(PoolMember(problem, view.pipeline.weight, own))
    pool = free + sum(_pooled(each.view) for each in proposals)
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


def _pooled(view: PipelineView) -> int:
    """Slots of the pipeline's launched servers, coming ones included."""
    return sum(sum(server.launched for server in (*group.ready, *group.coming)) for group in view.groups)


def _in_turn(requested: tuple[int, ...], room: int) -> tuple[int, ...]:
    """Launches granted to each group while there is room, one each in turn."""
    granted = [0] * len(requested)
    while room > 0 and any(given < count for given, count in zip(granted, requested, strict=True)):
        for g, count in enumerate(requested):
            if granted[g] < count and room > 0:
                granted[g], room = granted[g] + 1, room - 1
    return tuple(granted)


def _reallocated(
    proposals: Sequence[PipelineProposal], allotted: Sequence[int], granted: Sequence[tuple[int, ...]]
) -> tuple[tuple[str, ...], list[Clamp]]:
    """One server to retire from a pipeline above its share, while another pipeline lacks servers within its share."""
    lacking = [
        each.view.pipeline.name
        for each, share, given in zip(proposals, allotted, granted, strict=True)
        if sum(each.result.proposal.launch) > sum(given) and _pooled(each.view) + sum(given) < share
    ]
    for each, share in zip(proposals, allotted, strict=True):
        launched = [server.name for server in each.view.groups[0].ready if server.launched]
        # A pipeline's last server stays: without one, its next request would wait for a cold start.
        spare = len(each.view.groups[0].ready) > 1
        if lacking and launched and spare and _pooled(each.view) > share and not any(each.view.coming):
            sentence = f"{launched[-1]} of {each.view.pipeline.name} gives its slot to {lacking[0]}, where a lost request weighs more"
            return (launched[-1],), [Clamp(ClampKind.DEVICES, sentence)]
    return (), []


def _slots_backing_off(policy_input: PolicyInput, rules: Rules) -> dict[str, float]:
    """Slots without a server that are in back-off, with the seconds left."""
    launch, snapshot = rules.config.launch, policy_input.snapshot
    taken = {server.slot for server in snapshot.servers}
    slots = [slot.name for slot in launch.slots if slot.name not in taken] if launch is not None else []
    return {slot: snapshot.backing_off[slot] - snapshot.at_s for slot in slots if slot in snapshot.backing_off}


def _out_of_slots(each: PipelineProposal, granted: int, backing_off: dict[str, float]) -> list[Clamp]:
    short = sum(each.result.proposal.launch) - granted
    if short <= 0:
        return []
    name, plural = each.view.pipeline.name, "s" if short > 1 else ""
    slots = "".join(
        f"; {slot} is in back-off after a failed launch, for {max(0.0, left_s):.0f} s more" for slot, left_s in backing_off.items()
    )
    return [Clamp(ClampKind.DEVICES, f"{name} requires {short} more server{plural} than there are free slots{slots}")]


def _serves_others(name: str, view: PipelineView, proposals: Sequence[PipelineProposal]) -> bool:
    """Whether the server also serves another pipeline, so that it must stay."""
    others = [each.view for each in proposals if each.view is not view]
    return any(server.name == name for other in others for group in other.groups for server in group.ready)
