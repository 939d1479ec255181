"""What counts as an Envoy that runs, and how often its process is looked for."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from themis_triton.adapters.envoy import admin as envoy_admin
from themis_triton.adapters.envoy import process as envoy_process
from themis_triton.adapters.envoy import serving_check
from themis_triton.adapters.envoy.admin import EnvoyAdmin
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.probe import Answer
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.render import BOOTSTRAP, node_id
from themis_triton.adapters.envoy.serving_check import ServingCheck
from themis_triton.adapters.process_end import owned_processes, stop_process
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.adapters.sockets import free_ports
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.errors import ServerError
from themis_triton.core.routes import RouteTable


def configured(directory: Path, admin_port: int) -> EnvoyConfig:
    return EnvoyConfig(Address("127.0.0.1", 1), Address("127.0.0.1", 2), Address("127.0.0.1", admin_port), directory)


@asynccontextmanager
async def answering(node: str, version: str = "") -> AsyncIterator[int]:
    """What Envoy's admin address tells of an Envoy that is ready."""
    app = web.Application()

    async def info(_: web.Request) -> web.Response:
        return web.json_response({"node": {"id": node}, "version": version})

    async def ready(_: web.Request) -> web.Response:
        return web.Response(text="LIVE")

    app.add_routes([web.get("/server_info", info), web.get("/ready", ready)])
    runner = web.AppRunner(app)
    await runner.setup()
    (port,) = free_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield port
    await runner.cleanup()


def test_where_nothing_listens_no_envoy_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        admin = EnvoyAdmin(configured(tmp_path, free_ports(1)[0]))
        assert await admin.node_id() is None
        await admin.close()

    asyncio.run(scenario())


def test_files_are_not_written_past_an_envoy_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            files = EnvoyFiles(configured(tmp_path, port))
            with pytest.raises(ServerError, match=rf"127\.0\.0\.1:{port} did not answer /server_info: no answer within 0\.1 s"):
                await files.write(RouteTable({}, ()))
            await files.close()

    monkeypatch.setattr(envoy_admin, "_TIMEOUT_S", 0.1)
    asyncio.run(scenario())
    assert list(tmp_path.iterdir()) == []


def test_processes_are_looked_through_only_when_envoy_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    def look(state_directory: Path) -> list[psutil.Process]:
        looks.append(state_directory)
        return owned_processes(state_directory)

    async def scenario() -> None:
        command = ["/bin/sh", "-c", "sleep 30; :", str(tmp_path / BOOTSTRAP)]
        first = spawn(command, {**os.environ, OWNER_VARIABLE: owner_mark(tmp_path)}, tmp_path / "log")
        async with answering(node_id(tmp_path)) as port:
            envoy = EnvoyProcess(configured(tmp_path, port), tmp_path)
            try:
                assert await envoy.ensure() == await envoy.ensure() == first
                assert len(looks) == 1
            finally:
                await stop_process(first, 5.0)
            assert find_process(first) is None
            assert await envoy.ensure() is None
            assert len(looks) == 2
            await envoy.close()

    monkeypatch.setattr(envoy_process, "owned_processes", look)
    asyncio.run(scenario())


def test_silent_listeners_are_a_fault_after_ten_seconds_of_probes_and_not_after_a_standstill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sidecar that was stopped for a minute, or a suspended machine, finds a probe of before unanswered."""

    async def silent(*_: object) -> Answer:
        return Answer.SILENT

    monkeypatch.setattr(serving_check, "probe_listeners", silent)
    monkeypatch.setattr(ProcessorWait, "since_last_s", lambda _: 0.0)  # whatever else runs here

    async def scenario() -> None:
        check, faults = ServingCheck(), []
        for _ in range(4):
            faults.append(await check.find_fault(configured(tmp_path, 1), None))
            check._probed_at_s -= 60.0
        assert faults[:3] == [None] * 3
        assert faults[3] == "its listeners have not answered for 10 s"

    asyncio.run(scenario())
