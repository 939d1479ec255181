"""The live plan replayed tick by tick: it reaches the target, in the predicted order, whatever order its actions finish in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.unit.samples import MIB, NOW_S, STAGES, config, server
from themis_triton.act.executor import actuator_of
from themis_triton.core.action import Action, ActionKind
from themis_triton.core.config import DeviceSlot, LaunchConfig, ThemisConfig
from themis_triton.core.decision import Decision, Reason, Stage, Target
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import Snapshot
from themis_triton.plan.steps import plan
from themis_triton.solver.fleet import ServerAssignment
from themis_triton.solver.migration_steps import ADDITIONS, MoveTimes, Step, steps_to
from themis_triton.solver.plans import Binding, ChainPlan, StagePlan
from themis_triton.solver.problem import ChainProblem, StageProblem
from themis_triton.solver.surface import contention_surface

TIMES = MoveTimes(instance_init_s=1.0, instance_stop_s=1.3, server_launch_s=5.3, drain_s=2.1)
SURFACE = contention_surface(4, 8, 4, 20, 8, 16)
Words = tuple[ActionKind, str, str | None, ModelState | None, ModelState | None, Mapping[str, ModelState]]
Pair = tuple[int, int]
pairs = st.tuples(st.integers(1, 4), st.sampled_from([1, 4, 8]))


@dataclass(frozen=True)
class Case:
    """What each server runs, what each shall run in the end, and how many instances the memory of each slot holds (None: no limit)."""

    now: tuple[tuple[Pair, Pair], ...]
    goal: tuple[Pair, Pair]
    servers: int
    memory: tuple[int | None, ...]

    @property
    def target(self) -> dict[str, ModelState]:
        return {name: ModelState(*pair) for name, pair in zip(STAGES, self.goal, strict=True)}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"s{i}" for i in range(len(self.now)))

    @property
    def new(self) -> tuple[str, ...]:
        return tuple(f"new-{i + 1}" for i in range(len(self.now), self.servers))

    def limit_bytes(self, server: int) -> int | None:
        count = self.memory[server]
        return None if count is None else count * MIB

    def config(self) -> ThemisConfig:
        slots = tuple(DeviceSlot(name, name, self.limit_bytes(i)) for i, name in enumerate((*self.names, *self.new)))
        base = config(memory_bytes=MIB)
        assert base.launch is not None
        return replace(base, launch=LaunchConfig(slots, base.launch.model_repository))

    def predicted(self) -> tuple[Step, ...] | None:
        limits = [self.limit_bytes(i) for i in range(len(self.names))]
        known = [limit for limit in limits if limit is not None]
        stages = tuple(StageProblem(name, SURFACE, 1, 4, 8, instance_memory_bytes=MIB) for name in STAGES)
        problem = ChainProblem(stages, 300.0, 10.0, device_memory_bytes=min(known) if len(known) == len(limits) else None)
        held = zip(self.names, self.now, strict=True)
        now = [
            ServerAssignment(name, tuple(ModelState(*pair) for pair in states), limit)
            for (name, states), limit in zip(held, limits, strict=True)
        ]
        aim = tuple(StagePlan(name, self.servers, *pair, 0.0, 0.0, 0.0) for name, pair in zip(STAGES, self.goal, strict=True))
        return steps_to(problem, TIMES, now, ChainPlan(True, aim, 0.0, 0.0, 0.0, Binding.BOUNDS))


cases = st.builds(
    Case,
    st.lists(st.tuples(pairs, pairs), min_size=1, max_size=3).map(tuple),
    st.tuples(pairs, pairs),
    st.integers(1, 4),
    # All servers limited alike, not at all, or each in its own way.
    st.integers(2, 16).map(lambda count: (count,) * 4) | st.just((None,) * 4) | st.tuples(*[st.none() | st.integers(2, 16)] * 4),
)


@dataclass
class World:
    """A fleet on which actions finish when they are told to; what the executor does with plans, without its tasks."""

    case: Case
    cfg: ThemisConfig = field(init=False)
    servers: dict[str, Server] = field(init=False)
    under_way: dict[str, Action] = field(default_factory=dict)
    waiting: dict[str, Action] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    order: list[Words] = field(default_factory=list)
    ticks: int = 0

    def __post_init__(self) -> None:
        self.cfg = self.case.config()
        self.servers = {
            name: replace(server(name, slot=name), models={m: ModelState(*pair) for m, pair in zip(STAGES, held, strict=True)})
            for name, held in zip(self.case.names, self.case.now, strict=True)
        }

    def tick(self) -> None:
        """Plan what the target asks for now, and start it."""
        self.ticks += 1
        kept = [name for name in self.servers if name not in self.case.names[self.case.servers :]]
        launch = {slot: self.case.target for slot in self.case.new if slot not in self.servers}
        target = Target(dict.fromkeys(kept, self.case.target), launch, self.case.names[self.case.servers :])
        decision = Decision(f"d{self.ticks}", NOW_S, "themis", Stage.OPTIMISE, Reason.STEADY, target)
        busy = frozenset((*self.under_way, *self.waiting))
        for action in plan(decision, Snapshot(NOW_S, tuple(self.servers.values()), busy=busy), self.cfg).actions:
            self.submit(action)
        assert self.memory_holds()

    def submit(self, action: Action) -> None:
        if any(required not in self.ended for required in action.requires):
            self.waiting[actuator_of(action)] = action
            return
        self.check(action)
        self.under_way[actuator_of(action)] = action
        self.order.append(words(action, self.servers))
        if action.kind is ActionKind.LAUNCH:
            slot = str(action.slot)
            self.servers[slot] = replace(server(slot, slot=slot, phase=Phase.LAUNCHING), models=action.models)
        if action.kind is ActionKind.RETIRE:
            self.servers[action.server] = replace(self.servers[action.server], phase=Phase.DRAINING)

    def check(self, action: Action) -> None:
        """What must hold whenever an action starts."""
        running = list(self.under_way.values())
        if action.kind is ActionKind.REBATCH:
            assert all(other.kind is not ActionKind.REBATCH for other in running)
        if action.kind is ActionKind.SHRINK:
            assert action.before is not None
            assert action.after == replace(action.before, instances=action.before.instances - 1)
            growing = [other for other in running if other.kind in ADDITIONS]
            assert all(other.server != action.server and other.model not in (action.model, None) for other in growing)
        if action.kind is ActionKind.RETIRE:
            assert all(other.kind not in ADDITIONS for other in running)
            survivors = [self.servers[name] for name in self.case.names[: self.case.servers]]
            goal = self.case.target
            assert all(s.models[m].instances >= goal[m].instances for s in survivors for m in STAGES)
            assert all(s.models[m].max_batch == goal[m].max_batch for s in survivors for m in STAGES)

    def finish(self, actuator: str) -> None:
        action = self.under_way.pop(actuator)
        self.ended.add(action.id)
        if action.kind is ActionKind.LAUNCH:
            slot = str(action.slot)
            self.servers[slot] = replace(self.servers[slot], phase=Phase.SERVING)
        elif action.kind is ActionKind.RETIRE:
            del self.servers[action.server]
        elif action.model is not None and action.after is not None:
            held = self.servers[action.server]
            self.servers[action.server] = replace(held, models=held.models | {action.model: action.after})
        for waiting in list(self.waiting):
            if set(self.waiting[waiting].requires) <= self.ended:
                self.submit(self.waiting.pop(waiting))

    def memory_holds(self) -> bool:
        """No server's running and starting instances exceed its memory, unless it exceeded it from the start."""
        for i, (name, held) in enumerate(zip(self.case.names, self.case.now, strict=True)):
            memory = self.case.memory[i]
            limit = math.inf if memory is None else memory
            first = sum(count for count, _ in held)
            running = sum(state.instances for state in self.servers[name].models.values()) if name in self.servers else 0
            starting = sum(added(action) for action in self.under_way.values() if action.server == name)
            if running + starting > max(limit, first):
                return False
        return True

    @property
    def reached(self) -> bool:
        names = {*self.case.names[: self.case.servers], *self.case.new}
        return set(self.servers) == names and all(held.models == self.case.target for held in self.servers.values())


def added(action: Action) -> int:
    if action.before is None or action.after is None:
        return 0
    return action.after.instances if action.kind is ActionKind.REBATCH else max(0, action.after.instances - action.before.instances)


def words(action: Action, servers: dict[str, Server]) -> Words:
    if action.kind is ActionKind.LAUNCH:
        return action.kind, str(action.slot), None, None, None, action.models
    if action.kind is ActionKind.RETIRE:
        return action.kind, action.server, None, None, None, servers[action.server].models
    return action.kind, action.server, action.model, action.before, action.after, {}


@settings(max_examples=300, deadline=None)
@given(cases)
def test_what_the_plan_executes_is_what_was_predicted_in_the_same_order(case: Case) -> None:
    predicted = case.predicted()
    assume(predicted is not None)
    assert predicted is not None
    world, ends = World(case), dict[str, float]()
    world.tick()
    now_s = 0.0
    while world.under_way:
        for actuator, action in world.under_way.items():
            ends.setdefault(actuator, now_s + TIMES.duration_s(action))
        now_s = min(ends[actuator] for actuator in world.under_way)
        for actuator in [actuator for actuator in list(world.under_way) if ends[actuator] <= now_s + 1e-9]:
            del ends[actuator]
            world.finish(actuator)
        world.tick()
    assert world.reached
    assert [(step.kind, step.server, step.model, step.before, step.after, step.models) for step in predicted] == world.order


@settings(max_examples=300, deadline=None)
@given(cases, st.data())
def test_the_target_is_reached_in_whatever_order_actions_finish(case: Case, data: st.DataObject) -> None:
    assume(case.predicted() is not None)
    world = World(case)
    world.tick()
    while world.under_way:
        world.finish(data.draw(st.sampled_from(sorted(world.under_way))))
        world.tick()
    assert world.reached, world
    assert not world.waiting


@given(cases.filter(lambda case: any(limit is not None for limit in case.memory) and case.predicted() is None))
def test_what_has_no_room_is_never_started(case: Case) -> None:
    world = World(case)
    world.tick()
    while world.under_way:
        world.finish(next(iter(world.under_way)))
        world.tick()
    assert not world.reached, "the prediction found no way, but the plan did"


def test_the_cases_are_not_empty() -> None:
    """One case of each kind of step, so that a strategy that finds nothing cannot pass."""
    case = Case((((1, 1), (4, 8)), ((3, 1), (1, 8)), ((2, 8), (2, 8))), ((2, 8), (1, 8)), 2, (8, 8, 8, 8))
    predicted = case.predicted()
    assert predicted is not None
    assert {step.kind for step in predicted} == {ActionKind.REBATCH, ActionKind.SHRINK, ActionKind.RETIRE}
    grown = Case((((1, 8), (1, 8)),), ((2, 8), (1, 8)), 2, (None,) * 4).predicted()
    assert grown is not None
    assert [step.kind for step in grown] == [ActionKind.GROW, ActionKind.LAUNCH]
