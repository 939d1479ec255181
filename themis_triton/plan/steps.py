"""The plan stage: what is against what should be, as ordered actions with preconditions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.decision import Decision, Target
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import Snapshot


def plan(decision: Decision, snapshot: Snapshot) -> Plan:
    """Actions that lead from the snapshot to the decision's target, leaving alone every actuator that is busy or in back-off.

    Growth and launches start at once; a retirement requires every growth that the target asks of the survivors, so that they
    carry the load before a server leaves; reloads go one server at a time; a shrink takes one instance.
    """
    if decision.target is None:
        return Plan(decision.id)
    retire = frozenset(decision.target.retire)
    free = _Free(snapshot)
    vertical = list(_vertical(decision, decision.target, snapshot.servers, free))
    launches = _launches(decision, decision.target, free)
    if _growth_left_out(decision.target, snapshot.servers, vertical):
        return Plan(decision.id, (*vertical, *launches), retire)
    grows = tuple(action.id for action in vertical if action.kind is not ActionKind.SHRINK)
    retirements = _retirements(decision, decision.target, snapshot.servers, free, grows)
    return Plan(decision.id, (*vertical, *launches, *retirements), retire)


class _Free:
    """Which actuators may be touched now."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._taken = snapshot.busy | {actuator for actuator, until_s in snapshot.backing_off.items() if until_s > snapshot.at_s}

    def __call__(self, actuator: str) -> bool:
        return actuator not in self._taken

    def whole(self, server: str) -> bool:
        """Whether neither the server nor any model on it is being changed."""
        return self(server) and not any(actuator.startswith(f"{server}/") for actuator in self._taken)


def _vertical(decision: Decision, target: Target, servers: Iterable[Server], free: _Free) -> Iterator[Action]:
    wishes = [
        (server, model, server.models[model], wanted)
        for server in servers
        if _stays(server, target)
        for model, wanted in target.servers.get(server.name, {}).items()
        if model in server.models
    ]
    # One reload at a time, over ticks too: a busy actuator that wants another batch is one under way.
    rebatching = any(_is_rebatch(now, wanted) and not free(f"{server.name}/{model}") for server, model, now, wanted in wishes)
    for server, model, now, wanted in wishes:
        actuator = f"{server.name}/{model}"
        if not free(server.name) or not free(actuator):
            continue
        if _is_rebatch(now, wanted) and rebatching and not (target.fast_actuation or target.free_batches):
            step = _step(now, replace(wanted, max_batch=now.max_batch, max_queue_delay_us=now.max_queue_delay_us))
        else:
            step = _step(now, wanted, whole=target.fast_actuation or target.free_batches)
        if step is not None:
            rebatching |= step[0] is ActionKind.REBATCH
            yield Action(f"{decision.id}/{actuator}", step[0], decision.id, server.name, model, now, step[1])


def _is_rebatch(now: ModelState, wanted: ModelState) -> bool:
    return (wanted.max_batch, wanted.max_queue_delay_us) != (now.max_batch, now.max_queue_delay_us)


def _stays(server: Server, target: Target) -> bool:
    """A server that leaves is not changed before: what it would gain leaves with it."""
    return server.phase is Phase.SERVING and server.name not in target.retire


def _growth_left_out(target: Target, servers: Iterable[Server], vertical: Iterable[Action]) -> bool:
    """Whether a survivor shall grow but cannot start now: then nobody may leave yet."""
    started = {(action.server, action.model) for action in vertical}
    return any(
        wanted.instances > server.models[model].instances and (server.name, model) not in started
        for server in servers
        if _stays(server, target)
        for model, wanted in target.servers.get(server.name, {}).items()
        if model in server.models
    )


def _step(now: ModelState, wanted: ModelState, *, whole: bool = False) -> tuple[ActionKind, ModelState] | None:
    """The actuator to pull next; a shrink takes one instance, because a server tears them down one after the other and a growth would wait.

    `whole`: all go at once.
    """
    if _is_rebatch(now, wanted):
        return ActionKind.REBATCH, wanted
    if wanted.instances > now.instances:
        return ActionKind.GROW, wanted
    if wanted.instances < now.instances:
        return ActionKind.SHRINK, wanted if whole else replace(now, instances=now.instances - 1)
    return None


def _launches(decision: Decision, target: Target, free: _Free) -> Iterator[Action]:
    for slot, models in sorted(target.launch.items()):
        if free(slot):
            name = server_name(slot, decision.id)
            yield Action(f"{decision.id}/{slot}", ActionKind.LAUNCH, decision.id, name, slot=slot, models=models)


def server_name(slot: str, decision_id: str) -> str:
    """A name that says where the server runs and which decision started it, fit for file names."""
    return f"{slot.replace(':', '').replace('/', '-')}-{decision_id}"


def _retirements(decision: Decision, target: Target, servers: Iterable[Server], free: _Free, requires: tuple[str, ...]) -> Iterator[Action]:
    known = {server.name: server for server in servers}
    for name in target.retire:
        server = known.get(name)
        if server is not None and server.launched and server.phase is Phase.SERVING and free.whole(name):
            yield Action(f"{decision.id}/{name}", ActionKind.RETIRE, decision.id, name, requires=requires)
