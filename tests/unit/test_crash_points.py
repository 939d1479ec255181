"""The sidecar is killed at every step of every action, and started again: the world is the plan's or the one before it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.fakes import Bench, FakeClock, FakeControl, FakeLauncher, FakeRecorder
from tests.unit.samples import CLASSIFIER, DETECTOR, STAGES, action
from tests.unit.test_adopt import launched, phases, route, settings_in, start
from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.action import Action, ActionKind, Plan
from themis_triton.core.config import ThemisConfig
from themis_triton.core.fleet import ModelState, Phase, Server

MAX_STEPS = 60
STATES = {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(1, 8)}
CASES = {
    "grow": (action(ActionKind.GROW, "b", after=3), {"a", "b"}),
    "shrink": (action(ActionKind.SHRINK, "b", before=3, after=1), {"a", "b"}),
    "rebatch": (replace(action(ActionKind.REBATCH, "b"), after=ModelState(1, 4)), {"a", "b"}),
    "reload": (replace(action(ActionKind.RELOAD, "b"), before=None), {"a", "b"}),
    "launch": (Action("d/new", ActionKind.LAUNCH, "d", "new", slot="cpu:3", models=STATES), {"a", "b", "new"}),
    "retire": (Action("d/b", ActionKind.RETIRE, "d", "b"), {"a"}),
    "kill": (Action("d/b", ActionKind.KILL, "d", "b"), {"a"}),
}


class KilledError(BaseException):
    """The process has ended: nothing in it runs any more."""


@dataclass
class Life:
    """Ends at one step; a dead process takes no further step."""

    steps: int
    taken: int = 0

    def step(self) -> None:
        self.taken += 1
        if self.taken >= self.steps:
            raise KilledError


@dataclass
class Mortal:
    """A port of a process that may be killed before and after each call."""

    target: Any
    life: Life

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.target, name)
        if inspect.iscoroutinefunction(value):

            async def call(*arguments: Any) -> Any:
                self.life.step()
                result = await value(*arguments)
                self.life.step()
                return result

            return call
        return self._call(value) if callable(value) else value

    def _call(self, value: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.life.step()
            result = value(*arguments)
            self.life.step()
            return result

        return call


@dataclass
class Launcher(FakeLauncher):
    """Launches on addresses that Envoy can have."""

    async def launch(self, name: str, slot: str, models: dict[str, ModelState]) -> Server:
        await super().launch(name, slot, models)
        self.launched[name] = replace(launched(name, 3, Phase.LAUNCHING), slot=slot, models=dict(models))
        return self.launched[name]


@dataclass
class Outside:
    """What outlives the sidecar: processes, the models that they run, Envoy's files and the journal."""

    settings: ThemisConfig
    log: list[str] = field(default_factory=list)
    launcher: Launcher = field(init=False)
    control: FakeControl = field(init=False)

    def __post_init__(self) -> None:
        self.launcher = Launcher(self.log)
        self.control = FakeControl(self.log, alive=self.launcher.alive)

    @property
    def running(self) -> list[Server]:
        return [self.launcher.launched[name] for name in sorted(self.launcher.alive)]


async def run_until_killed(outside: Outside, kind: str, steps: int, *, journalled: bool) -> bool:
    """A sidecar with two servers carries one action out; returns whether it lived to the end."""
    servers = [launched("a", 1), launched("b", 2, Phase.UNRESPONSIVE if kind == "kill" else Phase.SERVING)]
    if kind == "shrink":
        servers[1] = replace(servers[1], models={**servers[1].models, DETECTOR: ModelState(3, 8)})
    for each in servers:
        outside.launcher.alive.add(each.name)
        outside.launcher.launched[each.name] = each
        outside.control.runs[each.name] = dict(each.models)
    await route(outside.settings, [each for each in servers if each.phase is Phase.SERVING])
    journal = Journal(outside.settings.state_directory / "journal.sqlite")
    for each in servers:
        journal.save_server(each)
    life, routes = Life(10**9), EnvoyFiles(outside.settings.envoy)
    recorder = Mortal(journal if journalled else FakeRecorder(), life)
    actuators = Actuators(Mortal(outside.control, life), Mortal(routes, life), Mortal(outside.launcher, life), recorder, FakeClock())
    executor = Executor(actuators, Fleet(recorder), Backoff(2.0, 60.0), STAGES)
    executor.fleet.put_all(servers)
    life.steps = life.taken + steps
    executor.submit(Plan("d", (CASES[kind][0],)))
    await asyncio.gather(*executor._tasks.values(), return_exceptions=True)
    await routes.close()
    journal.close()
    return life.taken < life.steps


@pytest.mark.parametrize("journalled", [True, False], ids=["journalled", "journal not written"])
@pytest.mark.parametrize("kind", CASES)
def test_after_a_kill_at_any_step_the_world_is_the_plans_or_the_one_before(tmp_path: Path, kind: str, journalled: bool) -> None:
    _, after = CASES[kind]

    async def killed_at(steps: int) -> bool:
        outside = Outside(settings_in(tmp_path / str(steps)))
        lived = await run_until_killed(outside, kind, steps, journalled=journalled)
        bench = Bench()
        bench.control.runs |= outside.control.runs
        await start(outside.settings, bench, outside.running)
        await bench.settled()
        assert phases(bench) == dict.fromkeys(sorted(bench.launcher.alive), Phase.SERVING), steps
        assert set(phases(bench)) in ({"a", "b"}, after), steps
        assert bench.routed == tuple(phases(bench)), steps
        for each in bench.fleet.all():
            assert each.models == bench.control.runs.get(each.name, STATES), steps
        return lived

    async def every_step() -> int:
        for steps in range(1, MAX_STEPS):
            if await killed_at(steps):
                return steps
        raise AssertionError("the action does not end")

    assert asyncio.run(every_step()) > 4
