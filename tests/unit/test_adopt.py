"""What a sidecar adopts whose journal is lost or older than the world: where Envoy routes, requests go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import CLASSIFIER, DETECTOR, config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.current_routes import read_current_routes
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.address import Address
from themis_triton.core.config import Mode, Overload, ThemisConfig
from themis_triton.core.fleet import ModelState, Phase, Server
from themis_triton.core.observation import ServerReading
from themis_triton.core.routes import RouteLimit
from themis_triton.daemon.adopt import adopt
from themis_triton.daemon.components import Components, build_observer
from themis_triton.plan.routes import route_table

MODELS = (DETECTOR, CLASSIFIER)


def settings_in(folder: Path) -> ThemisConfig:
    (admin,) = free_ports(1)
    base = config()
    envoy = replace(base.envoy, directory=folder / "envoy", admin_address=Address("127.0.0.1", admin))
    return replace(base, state_directory=folder, envoy=envoy, servers=())


def launched(name: str, number: int, phase: Phase = Phase.SERVING) -> Server:
    grpc, http, metrics = (Address("127.0.0.1", 20_000 + 10 * number + part) for part in range(3))
    return replace(server(name, phase=phase, slot=f"cpu:{number}"), grpc_address=grpc, http_address=http, metrics_address=metrics)


async def route(settings: ThemisConfig, servers: Iterable[Server]) -> None:
    """Write Envoy's files with these servers."""
    files = EnvoyFiles(settings.envoy)
    await files.write(route_table(servers, MODELS))
    await files.close()


async def start(settings: ThemisConfig, bench: Bench, running: Iterable[Server], journalled: Iterable[Server] = ()) -> Bench:
    """A sidecar adopts what runs."""
    for each in running:
        bench.launcher.alive.add(each.name)
        bench.launcher.launched[each.name] = replace(each, phase=Phase.LAUNCHING)
    journal, envoy, clock = Journal(settings.state_directory / "journal.sqlite"), EnvoyProcess(settings.envoy, Path()), SystemClock()
    for each in journalled:
        journal.save_server(each)
    observer = build_observer(settings, clock)
    try:
        ports = bench.world, bench.control, bench.launcher
        await adopt(Components(settings, *ports, journal, envoy, EnvoyFiles(settings.envoy), clock, observer))
    finally:
        await observer.close()
        await envoy.close()
        journal.close()
    return bench


def phases(bench: Bench) -> dict[str, Phase]:
    return {each.name: each.phase for each in bench.fleet.all()}


def test_without_a_journal_what_envoy_routes_to_serves_and_stays_in_the_routes(tmp_path: Path) -> None:
    settings, routed, coming = settings_in(tmp_path), launched("a", 1), launched("b", 2)

    async def scenario() -> None:
        await route(settings, [routed])
        bench = Bench()
        bench.control.runs["a"] = {DETECTOR: ModelState(5, 8), CLASSIFIER: ModelState(1, 8)}
        await start(settings, bench, [routed, coming])
        assert phases(bench) == {"a": Phase.SERVING, "b": Phase.LAUNCHING}
        assert bench.fleet.get("a").models[DETECTOR] == ModelState(5, 8)
        assert bench.routed == ("a",)
        await bench.settled()
        assert phases(bench) == {"a": Phase.SERVING, "b": Phase.SERVING}
        assert [line for line in bench.log if line.startswith(("ready", "warm"))] == ["ready b", "warm b"]

    asyncio.run(scenario())


def test_a_journal_that_ends_before_the_routes_were_written_takes_no_server_out_of_them(tmp_path: Path) -> None:
    settings, routed = settings_in(tmp_path), launched("a", 1)

    async def scenario() -> None:
        await route(settings, [routed])
        bench = await start(settings, Bench(), [routed], [replace(routed, phase=Phase.WARMING)])
        assert phases(bench) == {"a": Phase.SERVING}

    asyncio.run(scenario())


def test_a_retirement_goes_on_though_envoy_still_routes_to_the_server(tmp_path: Path) -> None:
    settings, routed, other = settings_in(tmp_path), launched("a", 1), launched("b", 2)

    async def scenario() -> None:
        await route(settings, [routed, other])
        bench = await start(settings, Bench(), [routed, other], [replace(routed, phase=Phase.STOPPING), other])
        assert bench.routed == ("b",)
        await bench.settled()
        assert phases(bench) == {"b": Phase.SERVING}

    asyncio.run(scenario())


def test_a_routed_server_that_holds_none_of_its_models_completes_its_launch(tmp_path: Path) -> None:
    settings, routed = settings_in(tmp_path), launched("a", 1)

    async def scenario() -> None:
        await route(settings, [routed])
        bench = Bench()
        bench.control.runs["a"] = {}
        await start(settings, bench, [routed])
        assert phases(bench) == {"a": Phase.LAUNCHING}
        await bench.executor.cancel()

    asyncio.run(scenario())


def test_sequences_stay_where_envoy_sends_them(tmp_path: Path) -> None:
    """Without the routes, `a` would get the pin: its name is the first."""
    settings, first, second = settings_in(tmp_path), launched("a", 1), launched("b", 2)

    async def scenario() -> None:
        stateful = [replace(each, stateful=(DETECTOR,), pinned=(DETECTOR,) if each is second else ()) for each in (first, second)]
        await route(settings, stateful)
        bench = Bench()
        bench.control.stateful.add(DETECTOR)
        await start(settings, bench, [first, second])
        assert {each.name: each.pinned for each in bench.fleet.all()} == {"a": (), "b": (DETECTOR,)}

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("overload", "mode", "kept"),
    [(Overload.SHED, Mode.ACTIVE, True), (Overload.SHED, Mode.ADVISORY, False), (Overload.QUEUE, Mode.ACTIVE, False)],
)
def test_a_limit_of_an_earlier_sidecar_holds_until_the_first_decision(tmp_path: Path, overload: Overload, mode: Mode, kept: bool) -> None:
    base, routed, limit = settings_in(tmp_path), launched("a", 1), RouteLimit(12.5, 4, 0.3, "full")
    settings = replace(base, mode=mode, pipelines=tuple(replace(each, overload=overload) for each in base.pipelines))

    async def scenario() -> None:
        files = EnvoyFiles(settings.envoy)
        await files.write(route_table([routed], MODELS, limits={DETECTOR: limit}))
        await files.close()
        bench = await start(settings, Bench(), [routed])
        assert bench.routes.tables[0].models[DETECTOR].limit == (limit if kept else None)
        (settings.envoy.directory / "rds" / "grpc.json").write_text('{"resources": [3]}')
        assert (await read_current_routes(settings.envoy)).limits == {}

    asyncio.run(scenario())


@pytest.mark.parametrize("text", ["", "[]", '{"resources": 3}', '{"resources": [{"cluster_name": 1, "endpoints": [{}]}]}', "[" * 100_000])
def test_files_of_envoy_that_are_garbage_say_nothing(tmp_path: Path, text: str) -> None:
    settings, routed = settings_in(tmp_path), launched("a", 1)

    async def scenario() -> None:
        await route(settings, [routed])
        assert (await read_current_routes(settings.envoy)).lead_to(routed)
        for path in settings.envoy.directory.glob("eds/*.json"):
            path.write_text(text)
        assert not (await read_current_routes(settings.envoy)).lead_to(routed)

    asyncio.run(scenario())


def test_a_server_that_is_not_seen_yet_is_not_said_to_be_silent(tmp_path: Path) -> None:
    settings, routed = settings_in(tmp_path), launched("a", 1)

    async def scenario() -> None:
        await route(settings, [routed])
        bench = Bench()
        bench.control.silent.add("a")
        await start(settings, bench, [routed])
        assert phases(bench) == {"a": Phase.SERVING}
        await bench.supervisor.update_reachability([ServerReading("a", bench.clock.now_s(), {}, "refused")])
        assert phases(bench) == {"a": Phase.SERVING}
        await bench.supervisor.close()

    asyncio.run(scenario())
