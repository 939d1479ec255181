"""The ordering rules: which actions lead from what runs to the target, and which of them may start now.

The live plan applies them at every tick, and the migration solver at every moment at which a predicted step ends, so that a predicted
migration has the order of the executed one.

1. Launches and growth start at once, all instances of a model together, where the server's memory has room for them.
2. A reload (another batch limit) takes the instance count with it and needs room for the old and the new instances. Reloads go one at
   a time; a model that waits for its turn changes its count in place meanwhile.
3. An instance is removed once nothing is being added to its model or to its server. A shrink takes one instance, because a server tears
   them down one after the other and a growth would wait for all of them.
4. Room first: growth or a reload that does not fit waits for the server's shrinks, and does not delay any.
5. A server is retired after every growth and reload that the target asks of the others, and after the launches that hold its models.
   It is not changed before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.config import ThemisConfig
from themis_triton.core.decision import Decision, Target
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import Snapshot

COMING = frozenset({Phase.LAUNCHING, Phase.WARMING})


@dataclass(frozen=True, slots=True)
class Memory:
    """`limit_bytes` of a server's instances, without an entry where there is none, and what one instance of a model takes."""

    limit_bytes: Mapping[str, int]
    instance_bytes: Mapping[str, int]


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
        return Plan(decision.id)
    running = Running(
        servers={server.name: server.models for server in snapshot.servers if server.phase is Phase.SERVING},
        retirable=frozenset(server.name for server in snapshot.servers if server.launched and server.phase is Phase.SERVING),
        coming=frozenset(model for server in snapshot.servers if server.phase in COMING for model in server.models),
        busy=snapshot.busy,
        backing_off=frozenset(actuator for actuator, until_s in snapshot.backing_off.items() if until_s > snapshot.at_s),
    )
    actions = next_actions(decision.id, decision.target, running, _memory(snapshot.servers, config))
    return Plan(decision.id, actions, frozenset(decision.target.retire))


def next_actions(decision_id: str, target: Target, running: Running, memory: Memory | None = None) -> tuple[Action, ...]:
    """The actions that may start now, by the rules above: growth and reloads, launches, retirements, shrinks."""
    return _Ordering(decision_id, target, running, memory).actions()


def server_name(slot: str, decision_id: str) -> str:
    """The name of a launched server: its slot and the decision that launched it, fit for file names."""
    return f"{slot.replace(':', '').replace('/', '-')}-{decision_id}"


def by_retirement(servers: Iterable[Server]) -> list[Server]:
    """Servers in the order in which they are kept: adopted ones first, then those with the most instances; the last is retired first."""
    return sorted(servers, key=lambda server: (server.launched, -sum(state.instances for state in server.models.values())))


def memory_limit_bytes(server: Server, config: ThemisConfig) -> int | None:
    """The device memory that the settings give to the server's slot; None without a slot, or where NVML alone limits it."""
    slots = config.launch.slots if config.launch is not None else ()
    return next((slot.memory_bytes for slot in slots if slot.name == server.slot), None)


def _memory(servers: Iterable[Server], config: ThemisConfig) -> Memory | None:
    """The limits of launched servers' slots; None where no slot has one. What NVML shows free limits the target already."""
    limits = {server.name: memory_limit_bytes(server, config) for server in servers}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    return Memory(known, {name: model.profile.instance_memory_bytes for name, model in config.models.items()}) if known else None


@dataclass(frozen=True, slots=True)
class _Change:
    """A model of a remaining server whose state differs from the target."""

    server: str
    model: str
    now: ModelState
    goal: ModelState

    @property
    def actuator(self) -> str:
        return f"{self.server}/{self.model}"

    @property
    def reloads(self) -> bool:
        return (self.goal.max_batch, self.goal.max_queue_delay_us) != (self.now.max_batch, self.now.max_queue_delay_us)

    @property
    def grows(self) -> bool:
        return self.goal.instances > self.now.instances

    def in_place(self) -> _Change:
        """Without the reload: the count alone."""
        return replace(self, goal=replace(self.now, instances=self.goal.instances))


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
    room: dict[str, float] = field(default_factory=dict)

    def actions(self) -> tuple[Action, ...]:
        changes = sorted(self._changes(), key=lambda change: change.server)
        self.growing_models |= self.running.coming
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
        launches = list(self._launches())
        return (*self.additions, *launches, *self._retirements(launches), *self._shrink_actions())

    def _changes(self) -> Iterator[_Change]:
        for server, models in self.running.servers.items():
            if server in self.target.retire:
                continue
            for model, goal in self.target.servers.get(server, {}).items():
                now = models.get(model)
                if now is not None and now != goal:
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
        if self.memory is not None:
            self.room[change.server] = self._room(change.server) - self._extra_bytes(change)

    def _change_count(self, change: _Change) -> None:
        if not change.grows:
            self.shrinks.append(change)
        elif self._fits(change):
            self._add(ActionKind.GROW, change)
        else:
            self.incomplete = True

    def _reload(self, change: _Change) -> None:
        waits = self.reloading and not self.target.whole_changes
        if not waits and self._fits(change):
            self.reloading = True
            self._add(ActionKind.REBATCH, change)
            return
        self.incomplete = True
        in_place = change.in_place()
        if change.grows:
            if waits and self._extra_bytes(in_place) + self._extra_bytes(change) <= self._room(change.server):
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

    def _fits(self, change: _Change) -> bool:
        return self.memory is None or self._extra_bytes(change) <= max(0.0, self._room(change.server))

    def _room(self, server: str) -> float:
        """Bytes that the server's limit leaves, less what starts or is under way."""
        if self.memory is None or server not in self.memory.limit_bytes:
            return float("inf")
        if server not in self.room:
            sizes = self.memory.instance_bytes
            used = sum(state.instances * sizes[model] for model, state in self.running.servers[server].items())
            self.room[server] = self.memory.limit_bytes[server] - used
        return self.room[server]

    def _extra_bytes(self, change: _Change) -> int:
        """A reload holds the old and the new instances at once."""
        added = change.goal.instances if change.reloads else max(0, change.goal.instances - change.now.instances)
        return added * self.memory.instance_bytes[change.model] if self.memory is not None else 0

    def _launches(self) -> Iterator[Action]:
        for slot, models in sorted(self.target.launch.items()):
            if self._is_free(slot):
                self.growing_models |= models.keys()
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
                yield self._action(ActionKind.SHRINK, change, replace(change.now, instances=change.now.instances - 1))
