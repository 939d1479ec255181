"""A real Envoy without Triton that ends, hangs, is drained or reads no files: its watch starts it again, says so and leaves no zombie."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest

from tests.e2e.envoy_setup import free_config, read, write
from tests.unit.fakes import Bench
from themis_triton.act.actuators import Actuators
from themis_triton.act.backoff import Backoff
from themis_triton.act.executor import Executor
from themis_triton.act.fleet import Fleet
from themis_triton.act.supervisor import Supervisor
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy import request_check
from themis_triton.adapters.envoy.binary import find_envoy
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.process_end import wait_for_exit, wait_until
from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.sockets import free_ports, listen_failure
from themis_triton.core.address import Address
from themis_triton.core.config import EnvoyConfig
from themis_triton.core.fleet import ProcessId
from themis_triton.core.incident import Incident
from themis_triton.core.routes import ModelRoute, RouteTable
from themis_triton.daemon import envoy_watch
from themis_triton.daemon.envoy_watch import EnvoyWatch

pytestmark = pytest.mark.e2e

TABLE = RouteTable({"model": ModelRoute()}, ())
TIMEOUT_S = 30.0
POLL_S = 0.02


@dataclass
class Watched:
    """A running Envoy and its watch."""

    config: EnvoyConfig
    envoy: EnvoyProcess
    supervisor: Supervisor
    executor: Executor
    files: EnvoyFiles

    def find(self) -> ProcessId:
        found = self.envoy.find()
        assert found is not None
        return found

    async def incidents(self, count: int) -> list[Incident]:
        """The next incidents."""
        seen: list[Incident] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(seen) < count:
                seen += self.supervisor.collect_incidents()
                await asyncio.sleep(POLL_S)
        return seen

    async def answers(self) -> bool:
        """Whether Envoy itself answers a client over HTTP."""

        def status() -> int:
            connection = http.client.HTTPConnection(self.config.http_listen.host, self.config.http_listen.port, timeout=5.0)
            try:
                connection.request("GET", "/no-such-path")
                return connection.getresponse().status
            finally:
                connection.close()

        return await asyncio.to_thread(status) == 404


@asynccontextmanager
async def watched(directory: Path) -> AsyncIterator[Watched]:
    binary = directory / "envoy-binary"
    binary.symlink_to(find_envoy(None))
    config = replace(free_config(directory), binary=binary)
    envoy, bench, clock = EnvoyProcess(config, directory), Bench(), SystemClock()
    files = EnvoyFiles(config, log_file=envoy.log_file, on_ignored=envoy.note_ignored)
    executor = Executor(Actuators(bench.control, files, None, bench.recorder, clock), Fleet(bench.recorder), Backoff(1.0, 1.0), ("model",))
    supervisor = Supervisor(executor, bench.control, None, ("model",), clock)
    await executor.routes.write()
    watch = EnvoyWatch(envoy, executor, supervisor, clock)
    watching = asyncio.create_task(watch.run())
    try:
        assert await wait_until(lambda: watch.process is not None, TIMEOUT_S)
        yield Watched(config, envoy, supervisor, executor, files)
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        await executor.cancel()
        await envoy.stop()
        await files.close()
        await envoy.close()


def test_a_killed_envoy_is_started_again_at_once_without_validation_and_leaves_no_zombie(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path) as running:
            validated = tmp_path / "envoy-check.json"
            before = await asyncio.to_thread(validated.stat)
            first = running.find()
            os.kill(first.pid, signal.SIGKILL)
            lost, restored = await running.incidents(2)
            assert (lost.kind, restored.kind) == ("proxy_lost", "proxy_restored")
            assert lost.sentence.startswith(f"Envoy (pid {first.pid}) has ended; its log: {tmp_path}")
            assert restored.sentence.startswith(f"Envoy was started again with its last files (pid {running.find().pid}) after ")
            assert running.supervisor.faults == ()
            assert await running.answers()
            assert not psutil.pid_exists(first.pid)
            assert (await asyncio.to_thread(validated.stat)).st_mtime_ns == before.st_mtime_ns

    asyncio.run(scenario())


def test_an_envoy_that_ends_when_its_files_are_gone_too_gets_them_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path) as running:
            await without_the_folders_that_it_watches(running)
            os.kill(running.find().pid, signal.SIGKILL)
            assert [incident.kind for incident in await running.incidents(2)] == ["proxy_lost", "proxy_restored"]
            assert await running.answers()
            assert set(await read(running.config, ["model"])) == {"model"}

    asyncio.run(scenario())


def test_an_envoy_that_cannot_be_started_again_is_a_fault_with_its_reason_until_it_can(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path) as running:
            binary = running.config.binary
            assert binary is not None
            aside = binary.rename(tmp_path / "aside")
            os.kill(running.find().pid, signal.SIGKILL)
            words = f"envoy.binary: {binary} cannot be started"
            assert await wait_until(lambda: any(words in fault for fault in running.supervisor.faults), TIMEOUT_S)
            aside.rename(binary)
            assert [incident.kind for incident in await running.incidents(2)] == ["proxy_lost", "proxy_restored"]
            assert running.supervisor.faults == ()
            assert await running.answers()

    asyncio.run(scenario())


def test_requests_that_a_failing_script_passed_on_unchecked_are_an_incident(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_check, "_CODE", "function envoy_on_request(handle) error('broken') end")
    monkeypatch.setattr(envoy_watch, "COUNT_EVERY_S", 0.0)

    async def scenario() -> None:
        async with watched(tmp_path) as running:
            counted = asyncio.create_task(running.incidents(1))
            async with asyncio.timeout(TIMEOUT_S):
                while not counted.done():
                    assert await running.answers(), "the request itself goes on"
            (incident,) = counted.result()
            assert (incident.kind, incident.server) == ("request_check_failed", None)
            assert "requests since it started (size, nesting, deadline) and passed them on; its log: " in incident.sentence

    asyncio.run(scenario())


AS_ANOTHER_USER = "import os, socket, sys; os.setgid(65534); os.setuid(65534); socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


def test_only_the_user_of_envoy_can_open_its_admin_socket(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with watched(tmp_path) as running:
            path = Path(running.config.admin_address.host)
            modes = [stat.S_IMODE((await asyncio.to_thread(each.stat)).st_mode) for each in (path, path.parent)]
            assert modes == [0o600, 0o700]
            if os.getuid() == 0:
                command = (sys.executable, "-I", "-c", AS_ANOTHER_USER, str(path))
                other = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
                assert b"PermissionError" in (await other.communicate())[1]
            assert await running.answers()

    asyncio.run(scenario())


def test_an_envoy_with_an_earlier_admin_address_is_adopted_and_moves_to_the_socket_at_its_next_start(tmp_path: Path) -> None:
    config = free_config(tmp_path)
    earlier = replace(config, admin_address=Address("127.0.0.1", free_ports(1)[0]))
    more = RouteTable({**TABLE.models, "another": ModelRoute()}, ())

    async def scenario() -> None:
        await write(earlier, TABLE)
        before, envoy = EnvoyProcess(earlier, tmp_path), EnvoyProcess(config, tmp_path)
        first = await before.ensure()
        assert first is not None
        await before.close()
        try:
            await write(config, more)
            assert await envoy.ensure() == first
            assert set(await read(config, list(more.models))) == set(more.models)
            os.kill(first.pid, signal.SIGKILL)
            await wait_for_exit(first)
            second = await envoy.ensure()
            assert second is not None
            assert envoy.admin_address == config.admin_address
            assert listen_failure(earlier.admin_address) is None
            assert set(await read(config, list(more.models))) == set(more.models)
        finally:
            await envoy.stop()
            await envoy.close()

    asyncio.run(scenario())


def test_a_hung_envoy_of_an_earlier_sidecar_does_not_keep_the_next_one_from_starting(tmp_path: Path) -> None:
    config = free_config(tmp_path)

    async def scenario() -> None:
        await write(config, TABLE)
        before, envoy = EnvoyProcess(config, tmp_path), EnvoyProcess(config, tmp_path)
        first = await before.ensure()
        assert first is not None
        await before.close()
        try:
            assert await envoy.end_if_hung() is None
            os.kill(first.pid, signal.SIGSTOP)
            # The signal reaches a busy process later.
            assert await wait_until(lambda: psutil.Process(first.pid).status() == psutil.STATUS_STOPPED, TIMEOUT_S)
            assert await envoy.end_if_hung() == "its process is stopped"
            assert find_process(first) is None
            assert await envoy.ensure() not in (None, first)
        finally:
            await envoy.stop()
            await envoy.close()

    asyncio.run(scenario())


async def stopped(running: Watched) -> str:
    os.kill(running.find().pid, signal.SIGSTOP)
    return "its process is stopped"


async def drained(running: Watched) -> str:
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=running.config.admin_address.host)) as client:
        assert (await client.post("http://envoy/drain_listeners")).is_success
    return "a listener refuses connections"


async def without_its_directory(running: Watched) -> str:
    await asyncio.to_thread(shutil.rmtree, running.config.directory)
    return f"its admin socket {running.config.admin_address.host} is gone"


async def without_the_folders_that_it_watches(running: Watched) -> str:
    for name in ("eds", "cds", "rds", "lds"):
        await asyncio.to_thread(shutil.rmtree, running.config.directory / name)
    return f"Envoy does not read its files in {running.config.directory}: none was taken up within 3 s"


FAULTS = [stopped, drained, without_its_directory, without_the_folders_that_it_watches]


@pytest.mark.parametrize("fault", FAULTS, ids=[each.__name__ for each in FAULTS])
def test_an_envoy_that_does_not_serve_or_takes_nothing_up_is_killed_and_started_again_with_its_files(
    fault: Callable[[Watched], Awaitable[str]], tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with watched(tmp_path) as running:
            assert await running.answers()
            first = running.find()
            reason = await fault(running)
            lost, restored = await running.incidents(2)
            assert lost.sentence.startswith(f"Envoy (pid {first.pid}) does not serve: {reason}; it is killed and started again")
            assert restored.kind == "proxy_restored"
            assert not psutil.pid_exists(first.pid)
            assert await running.answers()
            await running.executor.routes.write()
            assert set(await read(running.config, ["model"])) == {"model"}

    asyncio.run(scenario())
