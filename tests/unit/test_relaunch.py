"""A server that was started again on other ports: it does not outlive its failure, and a new daemon takes it over."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import DETECTOR, config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.launchers import build_launcher
from themis_triton.adapters.local.discovery import DEVICE_VARIABLE, SERVER_VARIABLE, SLOT_VARIABLE
from themis_triton.adapters.local.launcher import LocalLauncher
from themis_triton.adapters.process_end import stop_process
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.sockets import free_ports
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.address import Address
from themis_triton.core.config import AdoptedServer, DeviceSlot, LocalLaunchConfig, ThemisConfig
from themis_triton.core.errors import LaunchFailedError, SettingsError
from themis_triton.core.fleet import Phase, ProcessId, Server
from themis_triton.daemon.adopt import adopt
from themis_triton.daemon.components import Components, build_observer

NO_PROCESS = ProcessId(2**22 + 1, 1)
PORT_TAKEN_ONCE = """#!/bin/sh
echo $$ >> {pids}
[ $(wc -l < {pids}) -gt 1 ] && exec sleep 30
echo address already in use
exit 1
"""


def test_one_that_is_not_ready_on_other_ports_either_is_stopped(tmp_path: Path) -> None:
    binary, pids = tmp_path / "tritonserver", tmp_path / "pids"
    binary.write_text(PORT_TAKEN_ONCE.format(pids=pids))
    binary.chmod(0o700)
    slots = (DeviceSlot("cpu:0", "cpu:0", None),)
    servers = LocalLauncher(LocalLaunchConfig(slots, tmp_path, binary=binary, ready_timeout_s=1.0, stop_timeout_s=5.0), tmp_path)

    async def scenario() -> None:
        with pytest.raises(LaunchFailedError, match=r"was not ready within launch\.ready_timeout_s = 1 s"):
            await servers.wait_ready(await servers.launch("new", "cpu:0", {}))

    asyncio.run(scenario())
    first, again = map(int, pids.read_text().split())
    assert first != again
    assert not psutil.pid_exists(again)


@contextmanager
def orphan_running(folder: Path) -> Iterator[ProcessId]:
    """What looks like a server that a daemon with this state directory launched under the name `new`."""
    options = [f"--{part}-{what}" for part in ("grpc", "http", "metrics") for what in ("address=127.0.0.1", "port=1")]
    marks = {OWNER_VARIABLE: owner_mark(folder), SERVER_VARIABLE: "new", SLOT_VARIABLE: "cpu:0", DEVICE_VARIABLE: "cpu:0"}
    command = ["/bin/sh", "-c", "sleep 30; :", "sh", *options, "--grpc-restricted-protocol=trace:key=k"]
    process = spawn(command, {**os.environ, **marks}, folder / "log")
    try:
        wait_until_marked(process)
        yield process
    finally:
        asyncio.run(stop_process(process, 5.0))


def wait_until_marked(process: ProcessId) -> None:
    """The kernel shows the environment of a process only a moment after its program has begun."""
    end_s = time.monotonic() + 10.0
    while SERVER_VARIABLE not in psutil.Process(process.pid).environ():
        assert time.monotonic() < end_s, "the process has no environment"
        time.sleep(0.01)


async def adopted_by(settings: ThemisConfig, journal: Journal) -> tuple[Server, ...]:
    """The fleet of a daemon that starts with these settings."""
    bench, folder = Bench(), settings.state_directory
    control, envoy = TritonModelControl(), EnvoyProcess(settings.envoy, folder)
    launcher = build_launcher(settings.launch, folder) if settings.launch is not None else None
    try:
        clock = SystemClock()
        adapters = (journal, envoy, EnvoyFiles(settings.envoy), clock, build_observer(settings, clock))
        await adopt(Components(settings, bench.world, control, launcher, *adapters))
        return bench.fleet.all()
    finally:
        await bench.executor.cancel()
        await control.close()
        await envoy.close()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


def test_an_orphan_replaces_the_process_of_its_name_that_is_gone(tmp_path: Path, journal: Journal) -> None:
    journal.save_server(replace(server("new", phase=Phase.LAUNCHING, slot="cpu:0"), process=NO_PROCESS))
    with orphan_running(tmp_path) as orphan:
        (adopted,) = asyncio.run(adopted_by(replace(config(), state_directory=tmp_path), journal))
        assert adopted.process == orphan


def test_settings_that_lost_their_launch_section_do_not_orphan_what_serves(tmp_path: Path, journal: Journal) -> None:
    settings = replace(config(), state_directory=tmp_path, launch=None)
    with orphan_running(tmp_path) as orphan:
        with pytest.raises(SettingsError, match=r"launch: missing, but servers new, .* restore the section, or .* `themis down`"):
            asyncio.run(adopted_by(settings, journal))
        assert find_process(orphan) is not None
    assert asyncio.run(adopted_by(settings, journal)) == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ("gpu:0", "gpu:1", "gpu:2")),
        ("instance_group [{ count: 1 kind: KIND_GPU gpus: [ 1 ] }]", ("gpu:1",)),
        ("no configuration {", ("gpu:0", "gpu:1", "gpu:2")),
    ],
)
def test_a_server_that_does_not_answer_at_the_start_holds_the_devices_of_its_models_files(
    tmp_path: Path, journal: Journal, text: str | None, expected: tuple[str, ...]
) -> None:
    grpc, http, metrics = (Address("127.0.0.1", port) for port in free_ports(3))
    (tmp_path / DETECTOR).mkdir()
    if text is not None:
        (tmp_path / DETECTOR / "config.pbtxt").write_text(text)
    repository = tmp_path if text is not None else None
    silent = AdoptedServer("first", grpc, http, metrics, "gpu:0", model_repository=repository, reach=("gpu:1", "gpu:2"))
    settings = replace(config(), state_directory=tmp_path / "state", servers=(silent,), launch=None)
    (adopted,) = asyncio.run(adopted_by(settings, journal))
    assert (adopted.phase, adopted.models, adopted.unread_devices) == (Phase.UNREACHABLE, {}, expected)
