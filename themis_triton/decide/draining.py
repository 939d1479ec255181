"""Servers that an operator drains: others take their load first, then they leave the routes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from themis_triton.core.config import DrainState, ThemisConfig
from themis_triton.core.decision import Clamp, ClampKind, Reason, Target
from themis_triton.core.fleet import Phase, Server
from themis_triton.core.observation import Snapshot, launch_of
from themis_triton.core.price import may_use
from themis_triton.decide.combined_target import PipelineProposal
from themis_triton.decide.state import PolicyInput
from themis_triton.decide.view import PipelineView


@dataclass(frozen=True, slots=True)
class Drained:
    """What follows of the drains of one tick.

    `servers`: out of the routes from now on. `retire`: those of them that Themis launched and that are not needed any more. `clamps`: why
    others still serve, or do not retire yet.
    """

    servers: tuple[str, ...] = ()
    retire: tuple[str, ...] = ()
    clamps: tuple[Clamp, ...] = ()

    def applied(self, target: Target) -> Target:
        """The target with these servers out of the routes and retired."""
        return replace(target, drained=self.servers, retire=(*target.retire, *self.retire)) if self.servers else target


def without(policy_input: PolicyInput, names: Iterable[str]) -> PolicyInput:
    """The input as if these servers were not there: what they serve is then planned for elsewhere."""
    drained, snapshot = frozenset(names), policy_input.snapshot
    if not drained.intersection(server.name for server in snapshot.servers):
        return policy_input
    kept = replace(
        snapshot,
        servers=tuple(server for server in snapshot.servers if server.name not in drained),
        open_calls=tuple(call for call in snapshot.open_calls if call.server not in drained),
        reloads=tuple(call for call in snapshot.reloads if call.server not in drained),
    )
    return replace(policy_input, snapshot=kept)


def drain(
    drains: Mapping[str, DrainState],
    policy_input: PolicyInput,
    proposals: Sequence[PipelineProposal],
    routed: Sequence[PipelineView],
) -> Drained:
    """The drained servers. `proposals` plan without all of them, `routed` are the views with those that are still in the routes.

    One leaves the routes once every model that it holds has another server, these answer, and they carry the demand of its pipelines;
    a forced one with the first condition alone. One that left and that Themis launched retires while the others hold its models and answer:
    after a crash, a pause or a failed write of the routes it may be the last one that serves.
    """
    servers, retire, clamps, snapshot = list[str](), list[str](), list[Clamp](), policy_input.snapshot
    for server in snapshot.servers:
        state = drains.get(server.name)
        if state is None or (state is not DrainState.LEFT and server.phase is not Phase.SERVING):
            continue
        reason = None if state is DrainState.LEFT else _lone_words(server, snapshot, drains)
        if state is DrainState.WAITING and reason is None:
            reason = next(_obstacles(server, snapshot, drains, proposals, routed), None)
        if reason is not None:
            clamps.append(Clamp(ClampKind.DRAIN, f"{server.name} is drained once {reason}"))
            continue
        servers.append(server.name)
        if server.launched and server.phase is Phase.SERVING:
            needed = _lone_words(server, snapshot, drains) or _silent_words(server, snapshot, drains)
            if needed is None:
                retire.append(server.name)
            else:
                clamps.append(Clamp(ClampKind.DRAIN, f"{server.name} is drained, and retires once {needed}"))
    return Drained(tuple(servers), tuple(retire), tuple(clamps))


def held(drains: Mapping[str, DrainState], snapshot: Snapshot, why: str) -> tuple[Clamp, ...]:
    """Why the servers that are to be drained still serve while the fleet is held."""
    asked = {name for name, state in drains.items() if state is not DrainState.LEFT}
    names = [server.name for server in snapshot.servers if server.phase is Phase.SERVING and server.name in asked]
    return tuple(Clamp(ClampKind.DRAIN, f"{name} is drained once plans are made again ({why})") for name in names)


def _lone_words(server: Server, snapshot: Snapshot, drains: Mapping[str, DrainState]) -> str | None:
    lone = models_alone(server, snapshot.servers, drains)
    return f"another server holds {', '.join(lone)}" if lone else None


def _silent_words(server: Server, snapshot: Snapshot, drains: Mapping[str, DrainState]) -> str | None:
    silent = {reading.server for reading in snapshot.readings if reading.error is not None}
    names = [each.name for each in _others(server, snapshot.servers, drains) if each.name in silent and each.models.keys() & server.models]
    return f"the metrics of {', '.join(names)} can be read" if names else None


def _obstacles(
    server: Server,
    snapshot: Snapshot,
    drains: Mapping[str, DrainState],
    proposals: Sequence[PipelineProposal],
    routed: Sequence[PipelineView],
) -> Iterator[str]:
    """Why a server still serves, in words that follow `is drained once`."""
    for each, view in zip(proposals, routed, strict=True):
        if not any(place.server.name == server.name for group in view.groups for place in group.ready):
            continue
        demand_rps, carried_rps = each.result.proposal.evidence.demand_fast_rps, each.view.capacity_rps
        if not each.view.serves or carried_rps < demand_rps:
            carried = f"they carry {carried_rps:.0f}/s, and {_next_words(each, server)}"
            yield f"the other servers of {view.pipeline.name} carry {demand_rps:.0f}/s: {carried}"
    silent = _silent_words(server, snapshot, drains)
    if silent is not None:
        yield silent


def _next_words(each: PipelineProposal, server: Server) -> str:
    if any(each.view.coming) or (any(each.launches) and each.view.free_slots):
        return "another one is on its way"
    return f"no slot is free for another one (--force drains {server.name} at once)" if any(each.launches) else "they are changing"


def models_alone(server: Server, servers: Iterable[Server], drains: Mapping[str, DrainState]) -> tuple[str, ...]:
    """The models of a server that no other serving one holds which is not drained."""
    others = _others(server, servers, drains)
    elsewhere = {model for other in others for model in (*other.models, *(other.ready_models or ()))}
    return tuple(sorted({*server.models, *(server.ready_models or ())} - elsewhere))


def _others(server: Server, servers: Iterable[Server], drains: Mapping[str, DrainState]) -> list[Server]:
    return [each for each in servers if each.phase is Phase.SERVING and each.name != server.name and each.name not in drains]


def as_routed(proposals: Sequence[PipelineProposal], routed: Sequence[PipelineView]) -> list[PipelineProposal]:
    """The proposals with the numbers of what is in the routes: a server that waits to be drained still serves.

    What no plan carries without it is then no overload.
    """
    changed = []
    for each, view in zip(proposals, routed, strict=True):
        proposal = each.result.proposal
        if view.ready != each.view.ready:
            by_stage = view.ready if proposal.evidence.stage_servers_now else ()
            evidence = replace(proposal.evidence, capacity_rps=view.capacity_rps, servers_now=sum(view.ready), stage_servers_now=by_stage)
            calm = proposal.reason is Reason.INFEASIBLE and view.capacity_rps >= evidence.demand_fast_rps
            reason = Reason.STEADY if calm else proposal.reason
            each = replace(each, result=replace(each.result, proposal=replace(proposal, evidence=evidence, reason=reason)))  # noqa: PLW2901
        changed.append(each)
    return changed


def refusal(name: str, snapshot: Snapshot, config: ThemisConfig, *, force: bool) -> str | None:
    """Why a server cannot be drained; None when it can."""
    server = next((each for each in snapshot.servers if each.name == name), None)
    if server is None:
        serving = sorted(each.name for each in snapshot.servers if each.phase is Phase.SERVING and each.name not in config.drains)
        return f"server: {name!r:.60} is invalid: expected {' or '.join(serving) or 'a server that serves, and there is none'}"
    if server.phase is not Phase.SERVING:
        return f"{name} is {server.phase.value}: only a server that serves can be drained"
    if server.pinned:
        return f"{name} has the open sequences of {', '.join(server.pinned)}, which no other server can take over"
    lone = models_alone(server, snapshot.servers, config.drains)
    remedy = _remedy(lone, snapshot, config, force=force) if lone else None
    return f"{name} is the only server that holds {', '.join(lone)}{remedy}" if remedy is not None else None


def _remedy(lone: Sequence[str], snapshot: Snapshot, config: ThemisConfig, *, force: bool) -> str | None:
    """Why no other server will hold these models first, and what to do; None when one will."""
    if not {model for pipeline in config.pipelines for model in (*pipeline.stages, *pipeline.client_calls)}.issuperset(lone):
        return ". Fix: load it on another server first"
    if force:
        return ", so that requests would fail. Fix: leave out --force, so that another server is launched first"
    taken = {each.slot for each in snapshot.servers}
    slots = [slot.name for slot in config.launch.slots if may_use(slot, lone, config)] if config.launch is not None else []
    if all(slot in taken or any(launch_of(slot, model) in snapshot.resting for model in lone) for slot in slots):
        return ", and no slot is free to launch another one. Fix: add a slot to launch.slots, or load it on another server first"
    return None
