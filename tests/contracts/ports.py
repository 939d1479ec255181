"""What each port promises, as suites that its fake, its simulator and its real adapter all pass.

A subclass gives the fixture `world`: it runs a scenario over ports that it builds inside an event loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import pytest

from themis_triton.core.address import UNKNOWN_ADDRESS
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable
from themis_triton.ports import Clock, ModelControl, Observer, Recorder, RouteWriter, ServerLauncher


@dataclass(frozen=True)
class Ports:
    """The ports of one world. `refuse`: from now on instances of the model fail to start. `targets`: servers that get its requests.

    Where an engine places the servers: `set_places` gives it places for so many, and `lose_node` takes a server's node away.
    """

    launcher: ServerLauncher
    control: ModelControl
    observer: Observer
    routes: RouteWriter
    slots: tuple[str, ...]
    models: dict[str, ModelState]
    refuse: Callable[[str], None]
    targets: Callable[[str], Awaitable[set[str]]]
    set_places: Callable[[int], None] = lambda _: None
    lose_node: Callable[[Server], Awaitable[None]] | None = None

    async def ready(self, name: str, slot: str | None = None) -> Server:
        """A launched server that serves."""
        server = await self.launcher.wait_ready(await self.launcher.launch(name, slot or self.slots[0], self.models))
        await self.launcher.warm_up(server)
        return replace(server, phase=Phase.SERVING)


Scenario = Callable[[Ports], Awaitable[None]]
World = Callable[[Scenario], None]


class LauncherContract:
    """ServerLauncher."""

    def test_a_server_is_launched_made_ready_and_stopped(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            launched = await ports.launcher.launch("one", ports.slots[0], ports.models)
            assert (launched.name, launched.slot, launched.phase, launched.launched) == ("one", ports.slots[0], Phase.LAUNCHING, True)
            assert launched.models == ports.models
            assert await ports.launcher.is_alive(launched)
            ready = await ports.launcher.wait_ready(launched)
            assert ready.phase is Phase.WARMING
            assert UNKNOWN_ADDRESS not in (ready.grpc_address, ready.http_address, ready.metrics_address)
            assert ready.device
            await ports.launcher.warm_up(ready)
            grown = {name: replace(state, instances=state.instances + 1) for name, state in ports.models.items()}
            for models in (grown, ports.models):
                await ports.launcher.resize(ready, models)
            assert await ports.launcher.wait_idle(ready)
            assert await ports.launcher.read_memory(ready) >= 0
            assert len((await ports.launcher.read_log(ready, 3)).splitlines()) <= 3
            await ports.launcher.stop(ready)
            assert not await ports.launcher.is_alive(ready)
            await ports.launcher.read_log(ready, 3)
            await ports.launcher.stop(ready)

        world(scenario)

    def test_launched_servers_are_discovered_until_they_are_stopped(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            assert await ports.launcher.discover() == ()
            second = await ports.ready("two", ports.slots[1])
            first = await ports.ready("one", ports.slots[0])
            result = await ports.launcher.discover()
            assert [(s.name, s.slot, s.device, s.phase) for s in result] == [
                (s.name, s.slot, s.device, Phase.LAUNCHING) for s in (first, second)
            ]
            assert [(s.models, s.grpc_address, s.process, s.incarnation, s.node) for s in result] == [
                (s.models, s.grpc_address, s.process, s.incarnation, s.node) for s in (first, second)
            ]
            await ports.launcher.stop(first)
            assert [server.name for server in await ports.launcher.discover()] == ["two"]
            assert await ports.launcher.stop_all()
            assert await ports.launcher.discover() == ()
            assert not await ports.launcher.is_alive(second)
            assert await ports.launcher.stop_all() == ()

        world(scenario)

    def test_an_unknown_slot_is_refused_by_name(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            with pytest.raises(LaunchFailedError, match="nowhere"):
                await ports.launcher.launch("one", "nowhere", ports.models)
            assert await ports.launcher.discover() == ()

        world(scenario)

    def test_an_adopted_server_is_never_stopped(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            for end in (ports.launcher.stop, ports.launcher.kill):
                with pytest.raises(ServerError, match="one"):
                    await end(replace(server, launched=False))
                assert await ports.launcher.is_alive(server)

        world(scenario)

    def test_one_that_ended_is_not_ready(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.launcher.launch("one", ports.slots[0], ports.models)
            await ports.launcher.stop(server)
            with pytest.raises(LaunchFailedError, match="one"):
                await ports.launcher.wait_ready(server)
            assert await ports.launcher.wait_idle(server)

        world(scenario)


class EngineContract:
    """ServerLauncher whose servers an engine places on nodes: what it promises besides."""

    def test_a_launch_without_a_place_fails_within_a_bound_and_leaves_nothing(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            ports.set_places(0)
            server = await ports.launcher.launch("one", ports.slots[0], ports.models)
            assert await ports.launcher.is_alive(server)
            with pytest.raises(LaunchFailedError, match="one found no place within"):
                await ports.launcher.wait_ready(server)
            await ports.launcher.stop(server)
            assert await ports.launcher.discover() == ()
            ports.set_places(1)
            await ports.ready("two")

        world(scenario)

    def test_a_launch_takes_the_place_that_another_server_leaves(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            ports.set_places(1)
            first = await ports.ready("one")
            second = await ports.launcher.launch("two", ports.slots[1], ports.models)
            (ready, _) = await asyncio.gather(ports.launcher.wait_ready(second), ports.launcher.stop(first))
            assert ready.phase is Phase.WARMING

        world(scenario)

    def test_another_run_under_the_same_name_is_another_server(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            before = await ports.ready("one")
            await ports.launcher.stop(before)
            after = await ports.ready("one")
            assert await ports.launcher.is_alive(after)
            assert not await ports.launcher.is_alive(before)

        world(scenario)

    def test_a_lost_node_takes_its_servers_and_its_slot_can_be_used_again(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            lost, other = [await ports.ready(name, slot) for name, slot in zip(("one", "two"), ports.slots, strict=False)]
            assert ports.lose_node is not None
            await ports.lose_node(lost)
            assert not await ports.launcher.is_alive(lost)
            assert await ports.launcher.is_alive(other)
            assert [server.name for server in await ports.launcher.discover()] == ["two"]
            await ports.launcher.kill(lost)
            await ports.ready("three", lost.slot)

        world(scenario)


class ModelControlContract:
    """ModelControl."""

    def test_a_change_is_read_back_and_touches_nothing_else(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            model, *others = ports.models
            assert await ports.control.read_models(server, [*ports.models, "no-such-model"]) == ports.models
            grown = replace(ports.models[model], instances=ports.models[model].instances + 1)
            for state in (grown, grown, ports.models[model]):
                assert await ports.control.change(server, model, state) == state
                assert await ports.control.read_models(server, list(ports.models)) == {**ports.models, model: state}
            assert others

        world(scenario)

    def test_all_ready_models_are_listed(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            assert await ports.control.list_ready(server) == tuple(sorted(ports.models))
            await ports.launcher.stop(server)
            with pytest.raises(ServerError, match="one"):
                await ports.control.list_ready(server)

        world(scenario)

    def test_batching_is_changed_too(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            model = next(iter(ports.models))
            state = replace(ports.models[model], max_batch=ports.models[model].max_batch // 2)
            assert await ports.control.change(server, model, state) == state
            assert (await ports.control.read_models(server, [model]))[model] == state

        world(scenario)

    def test_a_refused_change_leaves_the_old_state(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            model = next(iter(ports.models))
            ports.refuse(model)
            with pytest.raises(ChangeRefusedError, match=model):
                await ports.control.change(server, model, replace(ports.models[model], instances=4))
            assert await ports.control.read_models(server, [model]) == {model: ports.models[model]}

        world(scenario)

    def test_a_model_is_loaded_anew_with_its_state(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            model = next(iter(ports.models))
            grown = replace(ports.models[model], instances=ports.models[model].instances + 1)
            for state in (grown, ports.models[model]):
                assert await ports.control.reload(server, model, state) == state
                assert await ports.control.read_models(server, list(ports.models)) == {**ports.models, model: state}

        world(scenario)

    def test_a_model_that_the_server_lacks_is_refused(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            with pytest.raises(ChangeRefusedError, match="no-such-model"):
                await ports.control.change(server, "no-such-model", ModelState(1, 1))

        world(scenario)

    def test_a_server_that_is_gone_is_an_error_and_can_be_forgotten(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            model = next(iter(ports.models))
            assert await ports.control.answers(server)
            await ports.launcher.kill(server)
            assert not await ports.launcher.is_alive(server)
            assert not await ports.control.answers(server)
            with pytest.raises(ServerError, match="one"):
                await ports.control.read_models(server, [model])
            with pytest.raises(ServerError, match="one"):
                await ports.control.change(server, model, ports.models[model])
            for _ in range(2):
                await ports.control.forget(server)

        world(scenario)


class ObserverContract:
    """Observer."""

    def test_each_server_has_a_reading_in_the_order_asked_and_one_that_is_gone_an_error(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            gone = await ports.ready("gone")
            await ports.launcher.stop(gone)
            server = await ports.ready("one")
            readings = await ports.observer.read([gone, server])
            assert [reading.server for reading in readings.servers] == ["gone", "one"]
            assert readings.servers[0].error
            assert readings.servers[0].models == {}
            assert readings.servers[1].error is None
            assert (await ports.observer.read([])).servers == ()

        world(scenario)

    def test_counters_never_fall_and_readings_have_their_time(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            server = await ports.ready("one")
            before, after = [await ports.observer.read([server]) for _ in range(2)]
            assert after.servers[0].at_s >= before.servers[0].at_s > 0.0
            for name, counters in before.servers[0].models.items():
                assert after.servers[0].models[name].success >= counters.success
                assert after.servers[0].models[name].inferences >= counters.inferences
            assert {device.at_s > 0.0 for device in after.devices} <= {True}

        world(scenario)

    def test_every_model_has_its_route(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            readings = await ports.observer.read([])
            assert readings.routes_error is None
            assert [route.model for route in readings.routes] == list(ports.models)
            assert all(route.arrivals >= 0.0 and route.in_flight >= 0.0 and route.failures >= 0.0 for route in readings.routes)
            assert all(route.latency.bounds_ms[-1] == float("inf") for route in readings.routes)

        world(scenario)


class RouteWriterContract:
    """RouteWriter."""

    def test_requests_go_where_the_newest_table_says(self, world: World) -> None:
        async def scenario(ports: Ports) -> None:
            one, two = [await ports.ready(name, slot) for name, slot in zip(("one", "two"), ports.slots, strict=False)]
            first, second = (Endpoint(server.name, server.grpc_address, server.http_address) for server in (one, two))
            model, other = list(ports.models)[:2]
            for route, expected in (
                (ModelRoute((first, second)), {"one", "two"}),
                (ModelRoute((first, second)), {"one", "two"}),
                (ModelRoute((first, second), excluded=frozenset({"one"})), {"two"}),
                (ModelRoute(), set[str]()),
                (ModelRoute((first,)), {"one"}),
            ):
                await ports.routes.write(RouteTable({model: route, other: ModelRoute((second,))}, (first, second)))
                assert await ports.targets(model) == expected
                assert await ports.targets(other) == {"two"}

        world(scenario)


class RecorderContract:
    """Recorder; the fixtures `recorder` and `servers` give an empty one and two servers, not in the order of their names."""

    def test_servers_are_remembered_until_they_are_forgotten(self, recorder: Recorder, servers: tuple[Server, Server]) -> None:
        later, earlier = servers
        assert later.name > earlier.name
        assert recorder.load_servers() == ()
        for server in servers:
            recorder.save_server(server)
        assert recorder.load_servers() == (earlier, later)
        changed = replace(earlier, phase=Phase.DRAINING, models={})
        recorder.save_server(changed)
        assert recorder.load_servers() == (changed, later)
        for _ in range(2):
            recorder.forget_server(later.name)
        assert recorder.load_servers() == (changed,)

    def test_what_is_remembered_does_not_change_with_the_one_that_gave_it(self, recorder: Recorder, servers: tuple[Server, Server]) -> None:
        server = servers[0]
        models = dict(server.models)
        recorder.save_server(replace(server, models=models))
        models.clear()
        assert recorder.load_servers() == (server,)


class ClockContract:
    """Clock; the fixture `clock_world` runs a scenario over a clock."""

    def test_time_goes_on_by_what_is_slept_and_never_back(self, clock_world: Callable[[Callable[[Clock], Awaitable[None]]], None]) -> None:
        async def scenario(clock: Clock) -> None:
            times = [clock.now_s()]
            for seconds in (0.02, 0.0, 0.01):
                await clock.sleep(seconds)
                times.append(clock.now_s())
                assert times[-1] - times[-2] >= seconds - 1e-6
            assert times == sorted(times)

        clock_world(scenario)
