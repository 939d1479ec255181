"""The timed steps from what runs now to a plan, by the ordering rules that the live plan follows (`plan/steps.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from themis_triton.core.action import Action, ActionKind
from themis_triton.core.decision import Target
from themis_triton.core.fleet import ModelState
from themis_triton.plan.memory import Memory
from themis_triton.plan.steps import Running, next_actions
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.plans import ChainPlan
from themis_triton.solver.problem import ChainProblem

ADDITIONS = frozenset({ActionKind.GROW, ActionKind.REBATCH, ActionKind.LAUNCH})


@dataclass(frozen=True, slots=True)
class MoveTimes:
    """Measured durations of actions, in seconds. A model's instances start together and are torn down one after the other.

    `whole_changes`: changes in place take less than a tick and are not parted into single steps. `reachable`: that many of the new
    servers are new places of running ones, which take an instance's initialisation.
    """

    instance_init_s: float = 1.0
    instance_stop_s: float = 1.2
    server_launch_s: float = 5.0
    drain_s: float = 2.0
    whole_changes: bool = False
    reachable: int = 0

    def duration_s(self, action: Action) -> float:
        """How long an action takes."""
        match action.kind:
            case ActionKind.GROW | ActionKind.REBATCH | ActionKind.RELOAD:
                return self.instance_init_s
            case ActionKind.SHRINK:
                removed = action.before.instances - action.after.instances if action.before and action.after else 1
                return removed * self.instance_stop_s
            case ActionKind.LAUNCH:
                return self.server_launch_s + self.instance_init_s
            case ActionKind.RETIRE | ActionKind.KILL:
                return self.drain_s


@dataclass(frozen=True, slots=True)
class Step:
    """One step on one server; `requires` names the earlier steps that it waits for, by their index.

    A change of a model names it with its states `before` and `after`. A launch or a retirement concerns the whole server: `models` are
    those that it gets or gives up.
    `peak_memory_bytes` is what the server's instances take at most while the step runs: a reload holds old and new instances.
    """

    kind: ActionKind
    server: str
    starts_s: float
    ends_s: float
    peak_memory_bytes: int
    model: str | None = None
    before: ModelState | None = None
    after: ModelState | None = None
    models: Mapping[str, ModelState] = field(default_factory=dict)
    requires: tuple[int, ...] = ()


def steps_to(problem: ChainProblem, times: MoveTimes, now: Sequence[ServerAssignment], plan: ChainPlan) -> tuple[Step, ...] | None:
    """The steps to one plan in the order in which they start; None where the devices' memory does not allow them.

    Servers retire from the end of `now`. `requires` is left empty; see `with_requirements`.
    """
    return _Replay(problem, times, now, plan).run()


@dataclass(slots=True)
class _Started:
    """A step that has started; `peak_memory_bytes` rises with what starts beside it on the same server."""

    action: Action
    starts_s: float
    ends_s: float
    peak_memory_bytes: int = 0


@dataclass(slots=True)
class _Replay:
    """Applies the ordering rules at each moment at which steps end."""

    problem: ChainProblem
    times: MoveTimes
    now: Sequence[ServerAssignment]
    plan: ChainPlan
    servers: dict[str, dict[str, ModelState]] = field(init=False)
    goal: dict[str, ModelState] = field(init=False)
    target: Target = field(init=False)
    memory: Memory | None = field(init=False)
    retirable: frozenset[str] = field(init=False)
    used_bytes: dict[str, int] = field(init=False)
    instance_bytes: dict[str, int] = field(init=False)
    steps: list[_Started] = field(default_factory=list)
    under_way: dict[str, _Started] = field(default_factory=dict)
    launched: set[str] = field(default_factory=set)
    retired: dict[str, dict[str, ModelState]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.problem.stages]
        self.goal = {stage.name: ModelState(stage.instances, stage.batch) for stage in self.plan.stages}
        self.servers = {server.name: dict(zip(names, server.stages, strict=True)) for server in self.now}
        kept, new = self.now[: self.plan.servers], [f"new-{i + 1}" for i in range(len(self.now), self.plan.servers)]
        retire = tuple(server.name for server in self.now[self.plan.servers :])
        targets = {**dict.fromkeys((server.name for server in kept), self.goal), **dict.fromkeys(new, self.goal)}
        self.target = Target(targets, dict.fromkeys(new, self.goal), retire, self.times.whole_changes)
        self.retirable = frozenset(retire)
        self.instance_bytes = {stage.name: stage.instance_memory_bytes for stage in self.problem.stages}
        self.used_bytes = {name: self._bytes(models) for name, models in self.servers.items()}
        common = self.problem.device_memory_bytes
        limits = {(server.name, ""): common if server.memory_limit_bytes is None else server.memory_limit_bytes for server in self.now}
        known = {key: limit for key, limit in limits.items() if limit is not None}
        self.memory = Memory(known, self.instance_bytes) if known else None

    def run(self) -> tuple[Step, ...] | None:
        """All steps; None where the target is not reached."""
        at_s = 0.0
        self._start(at_s)
        while self.under_way:
            at_s = min(step.ends_s for step in self.under_way.values())
            for actuator in [actuator for actuator, step in self.under_way.items() if step.ends_s <= at_s + 1e-9]:
                self._finish(actuator)
            self._start(at_s)
        reached = self.servers == self.target.servers
        return tuple(self._timed(step) for step in self.steps) if reached else None

    def _start(self, at_s: float) -> None:
        launching = {actuator for actuator, step in self.under_way.items() if step.action.kind is ActionKind.LAUNCH}
        running = Running(
            self.servers,
            self.retirable,
            frozenset(self.goal) if launching else frozenset(),
            busy=frozenset((*self.under_way, *self.launched)),
        )
        for action in next_actions("", self.target, running, self.memory):
            if not action.requires:  # the others start once what they require has ended
                self._start_one(action, at_s)

    def _start_one(self, action: Action, at_s: float) -> None:
        actuator = action.id[1:]
        near = action.slot in list(self.target.launch)[: self.times.reachable]
        duration_s = self.times.instance_init_s if near else self.times.duration_s(action)
        step = self.under_way[actuator] = _Started(action, at_s, at_s + duration_s)
        self.steps.append(step)
        server = action.slot or action.server
        if action.kind is ActionKind.LAUNCH:
            self.launched.add(server)
            self.used_bytes[server] = self._bytes(self.goal)
        elif action.model is not None and action.before is not None and action.after is not None:
            added = action.after.instances - (0 if action.kind is ActionKind.REBATCH else action.before.instances)
            self.used_bytes[server] += max(0, added) * self.instance_bytes[action.model]
        for other in self.under_way.values():
            if (other.action.slot or other.action.server) == server:
                other.peak_memory_bytes = max(other.peak_memory_bytes, self.used_bytes[server])

    def _finish(self, actuator: str) -> None:
        action = self.under_way.pop(actuator).action
        server = action.slot or action.server
        if action.kind is ActionKind.LAUNCH:
            self.servers[server] = dict(self.goal)
        elif action.kind is ActionKind.RETIRE:
            self.retired[server] = self.servers.pop(server)
        elif action.model is not None and action.after is not None:
            self.servers[server][action.model] = action.after
            if action.before is not None and action.kind is not ActionKind.GROW:
                removed = action.before.instances - (0 if action.kind is ActionKind.REBATCH else action.after.instances)
                self.used_bytes[server] -= removed * self.instance_bytes[action.model]

    def _bytes(self, models: dict[str, ModelState]) -> int:
        return sum(state.instances * self.instance_bytes[model] for model, state in models.items())

    def _timed(self, step: _Started) -> Step:
        action, server = step.action, step.action.slot or step.action.server
        times = (step.starts_s, step.ends_s, step.peak_memory_bytes)
        if action.model is not None:
            return Step(action.kind, server, *times, model=action.model, before=action.before, after=action.after)
        models = self.goal if action.kind is ActionKind.LAUNCH else self.retired[server]
        return Step(action.kind, server, *times, models=models)


def with_requirements(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The same steps, each with the earlier ones that it waits for."""
    return tuple(replace(step, requires=tuple(_requirements(steps, step))) for step in steps)


def _requirements(steps: Sequence[Step], step: Step) -> list[int]:
    ended = [(i, other) for i, other in enumerate(steps) if other.ends_s <= step.starts_s + 1e-9 and other is not step]
    if step.kind is ActionKind.RETIRE:
        return [i for i, other in ended if other.kind in ADDITIONS]
    required = []
    for i, other in ended:
        same_server, same_model = other.server == step.server, other.model == step.model
        makes_room = same_server and other.kind is ActionKind.SHRINK and step.kind is not ActionKind.SHRINK
        comes_first = step.kind is ActionKind.SHRINK and other.kind in ADDITIONS and (same_server or same_model or other.model is None)
        takes_turns = step.kind is other.kind is ActionKind.REBATCH
        if makes_room or comes_first or takes_turns or (same_server and same_model):
            required.append(i)
    return required
