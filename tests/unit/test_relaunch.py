"""A server that was started again on other ports: it does not outlive its failure, and a new daemon takes it over."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy_process import EnvoyProcess
from themis_triton.adapters.journal import Journal
from themis_triton.adapters.local_servers import LocalServers
from themis_triton.adapters.model_control import TritonModelControl, model_repositories
from themis_triton.adapters.orphans import DEVICE_VARIABLE, SERVER_VARIABLE, SLOT_VARIABLE
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn, stop_process
from themis_triton.core.config import DeviceSlot, LaunchConfig
from themis_triton.core.errors import LaunchFailedError
from themis_triton.core.fleet import Phase, ProcessId
from themis_triton.daemon.adopt import adopt
from themis_triton.daemon.wiring import Parts

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
    servers = LocalServers(LaunchConfig(slots, tmp_path, binary, ready_timeout_s=1.0, stop_timeout_s=5.0), tmp_path)

    async def scenario() -> None:
        with pytest.raises(LaunchFailedError, match=r"was not ready within launch\.ready_timeout_s = 1 s"):
            await servers.wait_ready(await servers.launch("new", "cpu:0", {}))

    asyncio.run(scenario())
    first, again = map(int, pids.read_text().split())
    assert first != again
    assert not psutil.pid_exists(again)


def test_an_orphan_replaces_the_process_of_its_name_that_is_gone(tmp_path: Path) -> None:
    options = [f"--{part}-{what}" for part in ("grpc", "http", "metrics") for what in ("address=127.0.0.1", "port=1")]
    marks = {OWNER_VARIABLE: owner_mark(tmp_path), SERVER_VARIABLE: "new", SLOT_VARIABLE: "cpu:0", DEVICE_VARIABLE: "cpu:0"}
    settings = replace(config(), state_directory=tmp_path)
    assert settings.launch is not None

    async def scenario(launch: LaunchConfig) -> None:
        bench, clock, journal = Bench(), SystemClock(), Journal(tmp_path / "journal.sqlite")
        journal.save_server(replace(server("new", phase=Phase.LAUNCHING, slot="cpu:0"), process=NO_PROCESS))
        command = ["/bin/sh", "-c", "sleep 30; :", "sh", *options, "--grpc-restricted-protocol=trace:key=k"]
        orphan = spawn(command, {**os.environ, **marks}, tmp_path / "log")
        control, launcher = TritonModelControl(model_repositories(tmp_path, ())), LocalServers(launch, tmp_path)
        envoy = EnvoyProcess(settings.envoy, tmp_path)
        try:
            await adopt(Parts(settings, bench.world, control, launcher, journal, envoy, clock))
            (adopted,) = bench.fleet.all()
            assert adopted.process == orphan
        finally:
            await stop_process(orphan, 5.0)
            await bench.executor.cancel()
            await control.close()
            await envoy.close()
            journal.close()

    asyncio.run(scenario(settings.launch))
