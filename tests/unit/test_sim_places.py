"""The virtual cluster's servers on several devices: growth onto devices, removal of places, faults, and what the ports report."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.unit.samples import CLASSIFIER, DETECTOR, config
from themis_triton.core.action import ActionKind
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, DeviceSlot, LatencyTable, ThemisConfig
from themis_triton.core.errors import ChangeRefusedError, LaunchFailedError, ServerError
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.routes import Endpoint, ModelRoute, RouteTable
from themis_triton.sim.cluster import Cluster
from themis_triton.sim.ports import SimControl, SimLauncher, SimRecorder
from themis_triton.sim.run import simulate
from themis_triton.sim.setup import PREROLL_S, SimOptions, build_simulation, build_world, serve_initially
from themis_triton.sim.virtual_time import run_virtual
from themis_triton.sim.world import SimWorld

SERVICE_MS = 40.0
INIT_S, STOP_S = 0.5, 1.2
AT_ONCE = SimWorld(control_s=0.0, hop_s=0.0)
DEVICES = ("cpu:0", "cpu:1", "cpu:2")


def settings(service_ms: float = SERVICE_MS, reach: tuple[str, ...] = DEVICES) -> ThemisConfig:
    """Slots on cpu:0 and cpu:1, whose servers may use all three devices; instances on one device share it evenly."""
    base = config(slots=2)
    assert base.launch is not None
    table = LatencyTable((1,), tuple(range(1, 17)), (tuple(service_ms * k for k in range(1, 17)),))
    profiles = {name: replace(m.profile, table=table) for name, m in base.models.items()}
    models = {name: replace(base.models[name], profile=profile, max_batch=1) for name, profile in profiles.items()}
    pipelines = (replace(base.pipelines[0], stages=(DETECTOR,)),)
    return replace(base, models=models, pipelines=pipelines, launch=replace(base.launch, reach=reach))


def spread(**counts: int) -> ModelState:
    """Instances by the number of the device: `_0=1, _2=3`."""
    return ModelState(0, 1).spread_over({f"cpu{name.replace('_', ':')}": count for name, count in counts.items()})


@dataclass
class Parts:
    """A cluster with server a on cpu:0, one instance of each model; requests for the detector from `PREROLL_S` on go to it."""

    cluster: Cluster
    launcher: SimLauncher
    control: SimControl
    a: Server

    async def change(self, state: ModelState, server: str = "a", model: str = DETECTOR) -> ModelState:
        return await self.cluster.change(server, model, state)

    def latency_s(self) -> list[float]:
        engine = self.cluster.sync().engine
        return list(engine.ended_s - engine.arrival_s)


def run(
    scenario: Callable[[Parts], Awaitable[None]],
    arrival_s: list[float] | None = None,
    world: SimWorld = AT_ONCE,
    cfg: ThemisConfig | None = None,
) -> None:
    cfg = cfg or settings()

    async def main() -> None:
        cluster = Cluster(cfg, world, build_simulation(cfg, {"video": np.array(arrival_s or [])}, world, 0), 0)
        launcher = SimLauncher(cluster, {"cpu:0": 0, "cpu:1": 1}, {"cpu:0": "cpu:0", "cpu:1": "cpu:1"}, 5.0)
        a = await launch(launcher, "a", "cpu:0")
        endpoint = Endpoint("a", a.grpc_address, a.http_address)
        cluster.write_routes(RouteTable({DETECTOR: ModelRoute((endpoint,))}, (endpoint,)))
        await asyncio.sleep(PREROLL_S - cluster.now_s() if arrival_s else 0.0)
        await scenario(Parts(cluster, launcher, SimControl(cluster), a))

    run_virtual(main())


async def launch(launcher: SimLauncher, name: str, slot: str) -> Server:
    models = {DETECTOR: ModelState(1, 1), CLASSIFIER: ModelState(1, 1)}
    server = await launcher.launch(name, slot, models)
    launcher.cluster.hold(name)
    return server


def test_a_growth_onto_two_devices_is_one_initialisation_and_halves_no_speed() -> None:
    """Thirty requests at once before one instance; two more devices serve from the same queue 0.5 s later."""

    async def scenario(parts: Parts) -> None:
        start_s = parts.cluster.now_s()
        assert await parts.change(spread(_0=1, _1=1, _2=1)) == spread(_0=1, _1=1, _2=1)
        served_s = next(use.at_s for use in parts.cluster.usage if use.instances == 4)
        assert served_s == pytest.approx(start_s + INIT_S)
        await asyncio.sleep(60.0)
        # The first instance serves 12 requests in these 0.5 s and has begun its 13th; then three devices serve the others.
        assert max(parts.latency_s()) == pytest.approx(INIT_S + 6 * SERVICE_MS / 1000.0, abs=0.021)

    run(scenario, [0.0] * 30)


def test_the_ports_report_reach_and_spread() -> None:
    async def scenario(parts: Parts) -> None:
        assert parts.a.reach == ("cpu:1", "cpu:2")
        assert parts.a.models[DETECTOR] == spread(_0=1)
        await parts.change(spread(_0=2, _2=1))
        assert await parts.control.read_models(parts.a, [DETECTOR]) == {DETECTOR: spread(_0=2, _2=1)}
        assert await parts.change(ModelState(1, 1)) == spread(_0=1)
        assert [server.reach for server in await parts.launcher.discover()] == [("cpu:1", "cpu:2")]

    run(scenario)


def test_a_device_that_another_server_uses_is_refused_and_free_once_its_last_instance_stopped() -> None:
    async def scenario(parts: Parts) -> None:
        await parts.change(spread(_0=1, _1=1))
        with pytest.raises(LaunchFailedError, match="cpu:1 is in use by 1 server"):
            await parts.launcher.launch("b", "cpu:1", {})
        start_s = parts.cluster.now_s()
        await parts.change(spread(_0=1))
        assert parts.cluster.now_s() == pytest.approx(start_s + STOP_S)
        b = await launch(parts.launcher, "b", "cpu:1")
        assert b.reach == ("cpu:0", "cpu:2")
        with pytest.raises(ChangeRefusedError, match="cpu:1 is in use by 1 server"):
            await parts.change(spread(_0=1, _1=1, _2=1))
        assert parts.cluster.find("a").models[DETECTOR] == spread(_0=1)
        await parts.change(spread(_1=1, _2=1), "b")

    run(scenario)


def test_a_place_stays_while_another_model_has_instances_there_or_starts_them() -> None:
    async def scenario(parts: Parts) -> None:
        await parts.change(spread(_0=1, _1=1))
        growth = asyncio.create_task(parts.change(spread(_0=1, _1=1), model=CLASSIFIER))
        await asyncio.sleep(0.1)
        shrink = asyncio.create_task(parts.change(spread(_0=1)))
        await asyncio.gather(growth, shrink)
        with pytest.raises(LaunchFailedError, match="cpu:1"):
            await parts.launcher.launch("b", "cpu:1", {})
        await parts.change(spread(_0=1), model=CLASSIFIER)
        await launch(parts.launcher, "b", "cpu:1")

    run(scenario)


def test_a_device_is_free_only_when_the_last_batch_on_it_has_ended() -> None:
    async def scenario(parts: Parts) -> None:
        await parts.change(spread(_0=1, _1=1))
        await asyncio.sleep(PREROLL_S + 7.1 - parts.cluster.now_s())
        await parts.change(spread(_0=1))
        assert parts.cluster.now_s() == pytest.approx(PREROLL_S + 6.9 + 4.0, abs=0.05)
        assert parts.latency_s() == pytest.approx([4.0] * 2)

    run(scenario, [3.0, 6.9], cfg=settings(service_ms=4000.0))


def test_a_move_to_another_device_adds_before_it_removes() -> None:
    async def scenario(parts: Parts) -> None:
        before = len(parts.cluster.usage)
        await parts.change(spread(_2=2))
        assert [use.instances - 1 for use in parts.cluster.usage[before:]] == [3, 2]
        assert parts.cluster.find("a").row == 0

    run(scenario)


def test_other_batches_on_other_devices_are_one_reload() -> None:
    async def scenario(parts: Parts) -> None:
        await parts.change(spread(_0=1, _1=1))
        await parts.change(replace(spread(_0=1, _2=1), max_queue_delay_us=500))
        await launch(parts.launcher, "b", "cpu:1")
        assert parts.cluster.find("a").rows == {"cpu:0": 0, "cpu:2": 2}

    run(scenario)


def test_a_device_outside_the_reach_is_refused_by_name() -> None:
    async def scenario(parts: Parts) -> None:
        with pytest.raises(ChangeRefusedError, match="a cannot use cpu:2: expected cpu:0, cpu:1"):
            await parts.change(spread(_0=1, _2=1))

    run(scenario, cfg=settings(reach=("cpu:1",)))


def test_a_killed_server_ends_on_all_devices_and_its_requests_go_to_another() -> None:
    async def scenario(parts: Parts) -> None:
        await parts.change(spread(_0=1, _1=1, _2=1))
        await parts.change(spread(_0=1, _2=1))
        b = await launch(parts.launcher, "b", "cpu:1")
        targets = tuple(Endpoint(s.name, s.grpc_address, s.http_address) for s in (parts.a, b))
        parts.cluster.write_routes(RouteTable({DETECTOR: ModelRoute(targets)}, targets))
        await asyncio.sleep(10.0 + PREROLL_S + 0.001 - parts.cluster.now_s())
        engine = parts.cluster.sync().engine
        assert engine.under_way.tolist() == [1, 1, 1]
        parts.cluster.kill("a")
        with pytest.raises(ServerError, match="a does not answer"):
            parts.cluster.find("a")
        assert engine.under_way.tolist() == [0, 1, 0]
        assert parts.cluster.usage[-1].instances == 2
        await asyncio.sleep(1.0)
        assert sorted(parts.latency_s()) == pytest.approx([0.04, 0.08, 0.12])
        assert engine.failed.sum() == 0
        await parts.change(spread(_1=1, _2=1), "b")

    run(scenario, [10.0] * 3)


def test_starting_instances_slow_all_batches_on_the_host() -> None:
    async def scenario(parts: Parts) -> None:
        await asyncio.sleep(3.0)
        await parts.change(spread(_0=1, _1=1, _2=1))
        await asyncio.sleep(3.0)
        assert parts.latency_s() == pytest.approx([0.04, 0.04 * 1.5, 0.04])

    run(scenario, [2.9, 3.1, 4.0], replace(AT_ONCE, start_slowdown=0.25))


def test_adopted_servers_start_with_their_devices_and_a_dead_one_leaves_them() -> None:
    async def main() -> None:
        loopback = Address("127.0.0.1", 1)
        slots = tuple(DeviceSlot(device, device) for device in ("cpu:2",))
        base = settings()
        assert base.launch is not None
        adopted = AdoptedServer("own", loopback, loopback, loopback, "cpu:0", reach=("cpu:1", "cpu:2"))
        cfg = replace(base, servers=(adopted,), launch=replace(base.launch, slots=slots, reach=()))
        cluster = Cluster(cfg, AT_ONCE, build_simulation(cfg, {}, AT_ONCE, 0), 0)
        world = build_world(cfg, cluster, SimRecorder(), AT_ONCE)
        await serve_initially(cfg, cluster, world.executor, SimOptions(models={DETECTOR: spread(_0=1, _1=1)}))
        (own,) = world.executor.fleet.all()
        assert (own.phase, own.launched, own.devices) == (Phase.SERVING, False, DEVICES)
        assert own.models == cluster.find("own").models == {DETECTOR: spread(_0=1, _1=1)}
        assert cluster.usage[-1].cost == 2 * cfg.prices.server + 2 * cfg.prices.instance
        await cluster.change("own", DETECTOR, spread(_0=1, _1=1, _2=1))
        with pytest.raises(LaunchFailedError, match="cpu:2 is in use"):
            cluster.start("new", 1, {})
        cluster.kill("own")
        cluster.start("new", 1, {})

    run_virtual(main())


def test_a_run_whose_servers_may_use_several_devices_ends_without_a_refusal() -> None:
    arrival_s = np.arange(0.0, 20.0, 1.0 / 20.0)
    result = simulate(replace(settings(), pipelines=config().pipelines), {"video": arrival_s}, 20.0, SimOptions(launched=2))
    assert (result.failed, result.failed_actions) == (0, {})
    assert {outcome.action.kind for outcome in result.outcomes} <= set(ActionKind)
