"""One real server on several emulated devices: growth onto them and back is in place, and instances there do not contend."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton

from tests.e2e.conftest import REPOSITORY, Launch
from tests.e2e.daemon_setup import beside, traffic
from tests.e2e.rounds import measured_again_if_disturbed
from tests.e2e.test_emulated_models import LIMIT_S, executed, expected_ms, streams_running
from tests.e2e.test_servers import change, foreign_server, instance_pids, read
from tests.e2e.triton_process import TritonProcess
from themis_triton.adapters.local.discovery import find_launched
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.commands.bench_place import BenchFlags, BenchPlace, quiet_device
from themis_triton.core.config import AdoptedServer, DeviceSlot, LocalLaunchConfig
from themis_triton.core.errors import ChangeRefusedError
from themis_triton.core.fleet import ModelState, Server
from themis_triton.settings import load_settings
from themis_triton.settings.shipped import shipped

pytestmark = pytest.mark.e2e

MODEL = "video-detector"
INIT_S = 0.5
HOME, SECOND, THIRD = "cpu:0", "cpu:1", "cpu:2"
ONE = ModelState(0, 1).spread_over({HOME: 1})


@pytest.fixture(scope="module")
def wide_server(launch_config: LocalLaunchConfig, state_directory: Path) -> Iterator[Server]:
    """A launched server that may use three devices; Triton binds the instances of the second to one core."""
    config = replace(
        launch_config,
        slots=(DeviceSlot("wide", HOME),),
        reach=(HOME, SECOND, THIRD),
        arguments=(f"--host-policy={SECOND},cpu-cores={_first_core()}-{_first_core()}",),
        stop_timeout_s=2.0,
    )
    launcher = LocalLauncher(config, state_directory)
    server = asyncio.run(launcher.launch("wide", "wide", {MODEL: ModelState(1, 1)}))
    try:
        yield asyncio.run(launcher.wait_ready(server))
    finally:
        asyncio.run(launcher.stop(server))


def _first_core() -> int:
    return min(os.sched_getaffinity(0))


def timed_change(server: Server, state: ModelState) -> tuple[ModelState, float]:
    started_s = time.monotonic()
    return change(server, MODEL, state), time.monotonic() - started_s


def as_process(server: Server) -> TritonProcess:
    assert server.process is not None
    return TritonProcess(server.process.pid, server.grpc_address.authority, "", "", Path(server.log_file or ""))


@measured_again_if_disturbed
def assert_service_ms(server: Server, streams: int, busy: int) -> None:
    """The service time is that of so many busy instances on a device: one more or less is a difference of 20 %."""
    assert mean_service_ms(server, streams) == pytest.approx(expected_ms(MODEL, 1, busy), rel=0.1)


def mean_service_ms(server: Server, streams: int) -> float:
    """Mean service time of batches of one while so many requests are always in the server."""
    with (
        triton.InferenceServerClient(server.grpc_address.authority) as client,
        streams_running(as_process(server), {(MODEL, 1): streams}) as running,
    ):
        first, deadline_s = executed(client, MODEL, 1)[0], time.monotonic() + LIMIT_S
        while executed(client, MODEL, 1)[0] < first + 2 * streams:
            assert time.monotonic() < deadline_s, "no stream gets an answer"
            wait(running, 0.01)
        before = executed(client, MODEL, 1)
        wait(running, 1.5)
        after = executed(client, MODEL, 1)
    assert all(stream.result() > 0 for stream in running), "every request was answered"
    return (after[1] - before[1]) / (after[0] - before[0]) / 1e6


def test_a_launched_server_begins_at_home_and_is_found_with_its_reach(wide_server: Server, state_directory: Path) -> None:
    assert wide_server.devices == (HOME, SECOND, THIRD)
    assert wide_server.models == {MODEL: ONE}
    assert read(state_directory, wide_server, MODEL) == {MODEL: ONE}
    found = next(server for server in find_launched(state_directory) if server.name == wide_server.name)
    assert (found.reach, found.models) == (wide_server.reach, wide_server.models)


def test_growth_onto_other_devices_and_back_is_in_place_and_loses_nothing(wide_server: Server, state_directory: Path) -> None:
    spread, pids = ONE, instance_pids(wide_server, MODEL)
    with streams_running(as_process(wide_server), {(MODEL, 1): 1}) as stream:
        for counts in ({HOME: 1, SECOND: 1}, {HOME: 1, SECOND: 1, THIRD: 1}):
            spread, took_s = timed_change(wide_server, spread.spread_over(counts))
            assert spread.spread == tuple(counts.items())
            assert read(state_directory, wide_server, MODEL) == {MODEL: spread}
            assert INIT_S < took_s < 4 * INIT_S, "one initialisation, and the start of its Python process"
            assert pids < instance_pids(wide_server, MODEL), "all instances before the change go on"
            pids = instance_pids(wide_server, MODEL)
    assert stream[0].result() > 0
    assert_service_ms(wide_server, 6, busy=1)  # Devices do not contend.
    cores = sorted(len(psutil.Process(pid).cpu_affinity() or []) for pid in pids)
    assert cores[0] == 1, "the host policy that Triton was given binds the instance on its device"
    with streams_running(as_process(wide_server), {(MODEL, 1): 1}) as stream:
        for counts in ({HOME: 1, THIRD: 1}, {HOME: 1}):
            spread, _ = timed_change(wide_server, spread.spread_over(counts))
            assert read(state_directory, wide_server, MODEL) == {MODEL: spread}
            assert pids > instance_pids(wide_server, MODEL), "the others go on"
            pids = instance_pids(wide_server, MODEL)
    assert stream[0].result() > 0
    assert spread == ONE


def test_a_scratch_server_is_kept_off_the_devices_with_traffic(wide_server: Server, tmp_path: Path) -> None:
    """The device with instances is not used while they answer requests, and the server's other devices are."""
    addresses = (wide_server.grpc_address, wide_server.http_address, wide_server.metrics_address)
    adopted = AdoptedServer("wide", *addresses, HOME, reach=(SECOND, THIRD))
    config = replace(load_settings(shipped("config") / "themis.yaml"), servers=(adopted,))
    slot = DeviceSlot("scratch", THIRD)
    launch = LocalLaunchConfig((slot,), REPOSITORY, reach=(HOME, SECOND))
    place = BenchPlace(BenchFlags(), config, launch, slot, tmp_path)
    assert asyncio.run(quiet_device(place)) == HOME
    with streams_running(as_process(wide_server), {(MODEL, 1): 1}) as stream:
        assert asyncio.run(quiet_device(place)) == SECOND
        assert asyncio.run(quiet_device(replace(place, flags=BenchFlags(allow_live=True)))) == HOME
        assert asyncio.run(quiet_device(replace(place, launch=replace(launch, reach=(HOME,))))) is None
    assert stream[0].result() > 0


def test_instances_at_home_contend_and_a_device_without_room_leaves_all_as_it_was(
    wide_server: Server, fail_init_file: Path, state_directory: Path
) -> None:
    two, _ = timed_change(wide_server, ONE.spread_over({HOME: 2}))
    assert_service_ms(wide_server, 4, busy=2)
    fail_init_file.write_text(MODEL)
    try:
        with pytest.raises(ChangeRefusedError, match=r"out of memory: video-detector could not be placed on cpu-1@"):
            timed_change(wide_server, two.spread_over({HOME: 2, SECOND: 1}))
    finally:
        fail_init_file.unlink()
    assert read(state_directory, wide_server, MODEL) == {MODEL: two}


def test_an_adopted_servers_first_change_onto_another_device_is_in_place(tmp_path: Path, state_directory: Path) -> None:
    with foreign_server(tmp_path, REPOSITORY, MODEL) as theirs:
        server = replace(theirs, reach=(SECOND,), model_repository=str(REPOSITORY))
        (before,) = read(state_directory, server, MODEL).values()
        assert before.spread == ((HOME, 1),)
        pids = instance_pids(server, MODEL)
        after = change(server, MODEL, before.spread_over({HOME: 1, SECOND: 1}))
        assert after.spread == ((HOME, 1), (SECOND, 1))
        assert pids < instance_pids(server, MODEL)


def devices_of(models: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Instances by model and device, of a status or of the server's own report."""
    spreads = {name: state["spread"] if isinstance(state, dict) else state.spread for name, state in models.items()}
    return {name: dict(spread) for name, spread in spreads.items()}


def seen(status: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    (server,) = status["servers"]
    return devices_of(server["models"])


def all_on(status: Mapping[str, Any], devices: int) -> bool:
    return all(len(counts) == devices for counts in seen(status).values())


def test_a_sidecar_killed_while_a_server_takes_devices_and_gives_them_back_adopts_what_runs(launch: Launch, tmp_path: Path) -> None:
    with beside(launch, tmp_path, slots=(), reach=(SECOND, THIRD)) as sidecar:

        async def adopted_again() -> None:
            """Killed with SIGKILL, and started again: the first status says what the server itself says."""
            await sidecar.kill()
            again = await sidecar.start()
            own = devices_of(await sidecar.adopted_models())
            assert set(seen(again)) == set(own)
            for model, counts in seen(again).items():
                assert set(counts) <= set(own[model])

        async def scenario() -> None:
            await sidecar.start()
            async with traffic(sidecar, 90.0) as load:
                await sidecar.until("growth under way", lambda s: bool(s["busy"]))
                await adopted_again()
                await sidecar.until("further devices", lambda s: all(len(counts) > 1 for counts in seen(s).values()))
                await adopted_again()
                await load.more(200)
                summary = await load.end()
            assert (summary.failed, summary.errors) == (0, {})
            await sidecar.until("a shrink", lambda s: s["usage"]["actions"].get("shrink", 0) > 0)
            await adopted_again()
            await sidecar.until("one device again", lambda s: all_on(s, 1))
            assert all(set(counts) == {HOME} for counts in devices_of(await sidecar.adopted_models()).values())

        asyncio.run(scenario())
