"""The contract suites on the fakes and the simulator, and on those real adapters that need no server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.contracts.ports import (
    ClockContract,
    EngineContract,
    LauncherContract,
    ModelControlContract,
    ObserverContract,
    Ports,
    RecorderContract,
    RouteWriterContract,
    Scenario,
    World,
)
from tests.unit.fakes import FakeClock, FakeControl, FakeLauncher, FakeObserver, FakeRecorder, FakeRoutes
from tests.unit.samples import CLASSIFIER, DETECTOR, config, route, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.fleet import ModelState, ProcessId, Server
from themis_triton.ports import Clock, Recorder
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.ports import SimControl, SimEngine, SimLauncher, SimObserver, SimRecorder, SimRoutes
from themis_triton.sim.setup import build_simulation
from themis_triton.sim.virtual_time import VirtualClock, run_virtual
from themis_triton.sim.world import SimWorld

SLOTS = ("cpu:0", "cpu:1")
MODELS = {DETECTOR: ModelState(1, 8), CLASSIFIER: ModelState(2, 8)}


def fake_world(scenario: Scenario) -> None:
    log: list[str] = []
    clock = FakeClock()
    launcher = FakeLauncher(log, slots=SLOTS)
    control = FakeControl(log, alive=launcher.alive)
    writer = FakeRoutes(log)
    observer = FakeObserver(clock, routes=tuple(route(name, clock.at_s, 0.0) for name in MODELS), alive=launcher.alive)

    async def targets(model: str) -> set[str]:
        return {endpoint.server for endpoint in writer.tables[-1].models[model].targets}

    async def run() -> None:
        await scenario(Ports(launcher, control, observer, writer, SLOTS, MODELS, control.refused.add, targets))

    asyncio.run(run())


def simulated_world(scenario: Scenario) -> None:
    async def run() -> None:
        settings, world = config(slots=len(SLOTS)), SimWorld()
        cluster = Cluster(settings, world, build_simulation(settings, {}, world, 1), 1)
        engine = SimEngine(place_timeout_s=5.0)
        launcher = SimLauncher(cluster, {slot: place for place, slot in enumerate(SLOTS)}, {slot: slot for slot in SLOTS}, 5.0, engine)

        def set_places(count: int) -> None:
            engine.places = count

        async def lose_node(lost: Server) -> None:
            await cluster.stop(lost.name)

        def refuse(_: str) -> None:
            cluster._world = replace(world, refuse_share=1.0)

        async def targets(model: str) -> set[str]:
            return set(cluster.targets(model))

        control, routes = SimControl(cluster), SimRoutes(cluster, world.route_s)
        await asyncio.sleep(1.0)
        observer = SimObserver(cluster)
        await scenario(Ports(launcher, control, observer, routes, SLOTS, MODELS, refuse, targets, set_places, lose_node))

    run_virtual(run())


@pytest.fixture(params=[fake_world, simulated_world], ids=["fake", "simulated"])
def world(request: pytest.FixtureRequest) -> World:
    chosen: World = request.param
    return chosen


class TestLauncher(LauncherContract): ...


class TestEngine(EngineContract):
    @pytest.fixture
    def world(self) -> World:
        return simulated_world


class TestModelControl(ModelControlContract): ...


class TestObserver(ObserverContract): ...


class TestRouteWriter(RouteWriterContract): ...


class TestRecorder(RecorderContract):
    @pytest.fixture(params=["fake", "simulated", "journal"])
    def recorder(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Recorder]:
        if request.param != "journal":
            yield {"fake": FakeRecorder, "simulated": SimRecorder}[request.param]()
            return
        journal = Journal(tmp_path / "journal.sqlite")
        yield journal
        journal.close()

    @pytest.fixture
    def servers(self) -> tuple[Server, Server]:
        return replace(server("b"), process=ProcessId(7, 8)), server("a", (2, 3), slot="cpu:1")


def in_real_time(clock: Callable[[], Clock]) -> Callable[[Callable[[Clock], Awaitable[None]]], None]:
    async def run(scenario: Callable[[Clock], Awaitable[None]]) -> None:
        await scenario(clock())

    return lambda scenario: asyncio.run(run(scenario))


def in_virtual_time(scenario: Callable[[Clock], Awaitable[None]]) -> None:
    async def run() -> None:
        await scenario(VirtualClock())

    run_virtual(run())


class TestClock(ClockContract):
    @pytest.fixture(params=[in_real_time(FakeClock), in_virtual_time, in_real_time(SystemClock)], ids=["fake", "simulated", "system"])
    def clock_world(self, request: pytest.FixtureRequest) -> Callable[[Callable[[Clock], Awaitable[None]]], None]:
        chosen: Callable[[Callable[[Clock], Awaitable[None]]], None] = request.param
        return chosen
