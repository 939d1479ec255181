"""The ordering rules: which actions lead from what runs to the target, and which of them may start now.

The live plan applies them at every tick, and the migration solver at every moment at which a predicted step ends, so that a predicted
migration has the order of the executed one.

1. Launches and growth start at once, all instances of a model together, where the server's memory has room for them.
2. A reload (another batch limit) takes the instance count with it and needs room for the old and the new instances. Reloads go one at
   a time; a model that waits for its turn changes its count in place meanwhile.
3. An instance is removed once nothing is being added to its model or to its server; servers that are launched with the model count as
   additions, unless the target's counts do not rest on them. A shrink takes one instance, because a server tears
   them down one after the other and a growth would wait for all of them. Instances that move to another device are added there first.
4. Room first: growth or a reload that does not fit waits for the server's shrinks, and does not delay any.
5. Models that a launched server is to hold besides are loaded there, where its memory has room.
6. A server is retired after every growth and reload that the target asks of the others, and after the launches that hold its models.
   It is not changed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.config import LaunchConfig, ThemisConfig
from themis_triton.core.construction import quick_init
from themis_triton.core.decision import Decision, Target
from themis_triton.core.fleet import ModelState, Phase, Place
from themis_triton.core.observation import Snapshot
from themis_triton.plan.memory import Memory, limits_now

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@quick_init
@dataclass(frozen=True, slots=True)
class Running:
    """What serves now: the models of each server, and the names of servers that may be retired.

    `coming`: models of servers on their way. `busy`: actuators with an action under way; `backing_off`: those in back-off.
    """

    servers: Mapping[str, Mapping[str, ModelState]]
    retirable: frozenset[str] = frozenset()
    coming: frozenset[str] = frozenset()
    busy: frozenset[str] = frozenset()
    backing_off: frozenset[str] = frozenset()


def plan(decision: Decision, snapshot: Snapshot, config: ThemisConfig) -> Plan:
    """The actions that lead from the snapshot towards the decision's target and may start now; busy and backing-off actuators rest."""
    if decision.target is None:
        return Plan(decision.id, unrouted=frozenset())
    running = Running(
        servers={server.name: server.models for server in snapshot.servers if server.phase is Phase.SERVING},
        retirable=frozenset(server.name for server in snapshot.servers if server.launched and server.phase is Phase.SERVING),
        coming=frozenset(model for server in snapshot.servers if server.phase in COMING for model in server.models),
        busy=snapshot.busy,
        backing_off=frozenset(actuator for actuator, until_s in snapshot.backing_off.items() if until_s > snapshot.at_s),
    )
    actions = next_actions(decision.id, decision.target, running, limits_now(snapshot, config))
    limits = None if decision.admissions is None else {each.model: each.limit for each in decision.admissions}
    target = decision.target
    return Plan(decision.id, actions, frozenset(target.retire), frozenset(target.unrouted), limits, frozenset(target.drained))


def next_actions(decision_id: str, target: Target, running: Running, memory: Memory | None = None) -> tuple[Action, ...]:
    """The actions that may start now, by the rules above: growth and reloads, launches, retirements, shrinks."""
    return _Ordering(decision_id, target, running, memory).actions()


def server_name(slot: str, decision_id: str) -> str:
    """The name of a launched server: its slot and the decision that launched it, fit for file names."""
    return f"{slot.replace(':', '').replace('/', '-')}-{decision_id}"


def by_retirement(places: Iterable[Place], launch: LaunchConfig | None) -> list[Place]:
    """Places in the order in which they are kept: adopted servers first, then those on the cheapest slots, then extra places.

    Of the same price, those with the most instances first. The last is given up first.
    """

    def order(place: Place) -> tuple[bool, bool, float, int]:
        price = launch.price_of(place.server.slot) if launch is not None and place.server.launched else None
        return (place.extra, place.server.launched, price or 0.0, -place.instances)

    return sorted(places, key=order)


@dataclass(slots=True)
class _Change:
    """A model of a remaining server whose state differs from the target.

    `reloads`: all of its instances are made anew. `added`: the instances to be added, by device.
    """

    server: str
    model: str
    now: ModelState
    goal: ModelState
    actuator: str = field(init=False)
    reloads: bool = field(init=False)
    added: Mapping[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.actuator = f"{self.server}/{self.model}"
        self.reloads = self.goal.renews_all(self.now)
        self.added = self.goal.added(self.now)

    @property
    def grows(self) -> bool:
        return bool(self.added)

    @property
    def recounts(self) -> bool:
        return self.goal.instances != self.now.instances or self.goal.spread != self.now.spread

    def in_place(self) -> _Change:
        """Without the reload: the counts alone."""
        return _Change(self.server, self.model, self.now, self.now.with_counts(self.goal.by_device))

    def growth(self) -> _Change:
        """The added instances alone."""
        return _Change(self.server, self.model, self.now, self.now.plus(self.added))

    def one_less(self) -> ModelState:
        """The state with one of the removed instances less, on the device that is to lose the most."""
        removed = self.now.added(self.goal)
        return self.now.plus({max(removed, key=lambda device: removed[device]): -1})


@dataclass(slots=True)
class _Ordering:
    """One application of the rules. `incomplete`: growth or a reload that the target asks for is not among the actions."""

    decision_id: str
    target: Target
    running: Running
    memory: Memory | None
    additions: list[Action] = field(default_factory=list)
    shrinks: list[_Change] = field(default_factory=list)
    growing_models: set[str] = field(default_factory=set)
    growing_servers: set[str] = field(default_factory=set)
    incomplete: bool = False
    reloading: bool = False
    room: dict[tuple[str, str], float] = field(default_factory=dict)

    def actions(self) -> tuple[Action, ...]:
        changes = sorted(self._changes(), key=lambda change: change.server)
        self.growing_models |= set() if self.target.early_shrinks else self.running.coming
        for change in changes:
            if change.actuator in self.running.busy:
                self._note_under_way(change)
        ready = [change for change in changes if self._check_free(change)]
        for change in ready:
            if not change.reloads:
                self._change_count(change)
        for change in ready:
            if change.reloads:
                self._reload(change)
        self.additions += self._loads()
        launches = list(self._launches())
        return (*self.additions, *launches, *self._retirements(launches), *self._shrink_actions())

    def _changes(self) -> Iterator[_Change]:
        for server, models in self.running.servers.items():
            if server in self.target.retire:
                continue
            for model, goal in self.target.servers.get(server, {}).items():
                now = models.get(model)
                if now is not goal and now is not None and now != goal:
                    yield _Change(server, model, now, goal)

    def _is_free(self, actuator: str) -> bool:
        return actuator not in self.running.busy and actuator not in self.running.backing_off

    def _check_free(self, change: _Change) -> bool:
        if self._is_free(change.server) and self._is_free(change.actuator):
            return True
        self.incomplete |= change.grows
        return False

    def _note_under_way(self, change: _Change) -> None:
        if change.reloads or change.grows:
            self.incomplete |= change.grows or not self.target.whole_changes
            self.reloading |= change.reloads
            self._note_addition(change)

    def _note_addition(self, change: _Change) -> None:
        self.growing_models.add(change.model)
        self.growing_servers.add(change.server)
        for device, extra in self._extra_bytes(change).items():
            self.room[change.server, device] = self._room(change.server, device) - extra

    def _change_count(self, change: _Change) -> None:
        if not change.grows:
            self.shrinks.append(change)
            return
        growth = change.growth()
        if self._fits(growth):
            self._add(ActionKind.GROW, growth)
        else:
            self.incomplete = True

    def _reload(self, change: _Change) -> None:
        waits = self.reloading and not self.target.whole_changes
        if not waits and self._fits(change):
            self.reloading = True
            self._add(ActionKind.REBATCH, change)
            return
        self.incomplete = True
        if change.now.joint or not change.recounts:
            return  # no change of counts is in place, or there is none
        in_place = change.in_place()
        if change.grows:
            if waits and self._fits(in_place, change):
                self._change_count(in_place)
        elif in_place.goal != in_place.now:
            self._change_count(in_place)

    def _add(self, kind: ActionKind, change: _Change) -> None:
        self._note_addition(change)
        self.additions.append(self._action(kind, change, change.goal))

    def _action(self, kind: ActionKind, change: _Change, after: ModelState) -> Action:
        return Action(
            f"{self.decision_id}/{change.actuator}", kind, self.decision_id, change.server, change.model, before=change.now, after=after
        )

    def _fits(self, *changes: _Change) -> bool:
        """Whether all of these changes of one server fit its devices."""
        extra: dict[str, int] = {}
        for change in changes:
            for device, count in self._extra_bytes(change).items():
                extra[device] = extra.get(device, 0) + count
        return all(count <= max(0.0, self._room(changes[0].server, device)) for device, count in extra.items())

    def _room(self, server: str, device: str) -> float:
        """Bytes that the limit of a server's device leaves, less what starts or is under way."""
        if self.memory is None or (server, device) not in self.memory.limit_bytes:
            return float("inf")
        if (server, device) not in self.room:
            sizes = self.memory.instance_bytes
            used = sum(state.by_device.get(device, 0) * sizes[model] for model, state in self.running.servers[server].items())
            self.room[server, device] = self.memory.limit_bytes[server, device] - used
        return self.room[server, device]

    def _extra_bytes(self, change: _Change) -> dict[str, int]:
        """By device. A reload holds the old and the new instances at once."""
        if self.memory is None:
            return {}
        added = change.goal.by_device if change.reloads else change.added
        return {device: count * self.memory.instance_bytes[change.model] for device, count in added.items()}

    def _loads(self) -> Iterator[Action]:
        for server in sorted(self.running.retirable - set(self.target.retire)):
            for model, state in self.target.servers.get(server, {}).items():
                actuator = f"{server}/{model}"
                if model in self.running.servers[server]:
                    continue
                load = _Change(server, model, state.with_counts(dict.fromkeys(state.by_device, 0)), state)
                if self._is_free(server) and self._is_free(actuator) and self._fits(load):
                    self._note_addition(load)
                    yield Action(f"{self.decision_id}/{actuator}", ActionKind.RELOAD, self.decision_id, server, model, after=state)
                else:
                    self.incomplete = True

    def _launches(self) -> Iterator[Action]:
        for slot, models in sorted(self.target.launch.items()):
            if self._is_free(slot):
                self.growing_models |= set() if self.target.early_shrinks else models.keys()
                name = server_name(slot, self.decision_id)
                yield Action(f"{self.decision_id}/{slot}", ActionKind.LAUNCH, self.decision_id, name, slot=slot, models=models)

    def _retirements(self, launches: list[Action]) -> Iterator[Action]:
        taken = self.running.busy | self.running.backing_off
        changing = taken | {actuator.rpartition("/")[0] for actuator in taken}
        for name in self.target.retire if not self.incomplete else ():
            models = self.running.servers.get(name)
            if models is None or name not in self.running.retirable or name in changing or models.keys() & self.running.coming:
                continue
            requires = (*(a.id for a in self.additions), *(a.id for a in launches if a.models.keys() & models.keys()))
            yield Action(f"{self.decision_id}/{name}", ActionKind.RETIRE, self.decision_id, name, requires=requires)

    def _shrink_actions(self) -> Iterator[Action]:
        for change in self.shrinks:
            if self.target.whole_changes:
                yield self._action(ActionKind.SHRINK, change, change.goal)
            elif change.model not in self.growing_models and change.server not in self.growing_servers:
                yield self._action(ActionKind.SHRINK, change, change.one_less())
