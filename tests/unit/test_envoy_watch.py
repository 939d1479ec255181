"""The watch of Envoy: growing delays, an end during a check, and requests that its script could not check."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import envoy_at
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.process_identity import identify
from themis_triton.core.address import Address
from themis_triton.core.fleet import ProcessId
from themis_triton.core.incident import Incident, IncidentKind
from themis_triton.daemon import envoy_watch
from themis_triton.daemon.envoy_watch import FIRST_RETRY_S, EnvoyWatch

TIMEOUT_S = 20.0


class EndsAtOnce(EnvoyProcess):
    """Its Envoy serves, and is gone at once."""

    def __init__(self, directory: Path) -> None:
        super().__init__(envoy_at(Address("127.0.0.1", 3)), directory)
        self.started_at_s: list[float] = []
        self.fourth = asyncio.Event()

    async def has_files(self) -> bool:
        return True

    async def ensure(self) -> ProcessId | None:
        self.started_at_s.append(asyncio.get_running_loop().time())
        if len(self.started_at_s) == 4:
            self.fourth.set()
        process = await asyncio.create_subprocess_exec("sleep", "60")
        identity = identify(process.pid)
        process.kill()
        await process.wait()
        return identity


def test_each_start_of_one_that_does_not_last_waits_twice_as_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        envoy, bench = EndsAtOnce(tmp_path), Bench()
        watching = asyncio.create_task(EnvoyWatch(envoy, bench.executor, bench.supervisor, SystemClock()).run())
        async with asyncio.timeout(TIMEOUT_S):
            await envoy.fourth.wait()
        watching.cancel()
        await asyncio.wait({watching})
        await envoy.close()
        first, *_, last = envoy.started_at_s
        assert last - first >= FIRST_RETRY_S * (1 + 2 + 4)

    asyncio.run(scenario())


class Checked(EnvoyProcess):
    """Its Envoys live until they are killed. `errors`: what each counts. `hangs`: the number of the one whose check never ends."""

    def __init__(self, directory: Path, errors: tuple[int, ...], hangs: int = 0) -> None:
        super().__init__(envoy_at(Address("127.0.0.1", 3)), directory)
        self.errors = errors
        self.hangs = hangs
        self.started: list[asyncio.subprocess.Process] = []
        self.checking = asyncio.Event()

    async def has_files(self) -> bool:
        return True

    async def ensure(self) -> ProcessId | None:
        self.started.append(await asyncio.create_subprocess_exec("sleep", "60"))
        return identify(self.started[-1].pid)

    async def find_fault(self, identity: ProcessId | None) -> str | None:  # noqa: ARG002 - as the watch calls it
        if len(self.started) == self.hangs:
            self.checking.set()
            await asyncio.Event().wait()
        return None

    async def count_script_errors(self) -> int:
        return self.errors[len(self.started) - 1]


@asynccontextmanager
async def watching(envoy: Checked) -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(EnvoyWatch(envoy, bench.executor, bench.supervisor, SystemClock()).run())
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield bench
    finally:
        task.cancel()
        await asyncio.wait({task})
        for process in envoy.started:
            if process.returncode is None:
                process.kill()
            await process.wait()
        await envoy.close()


async def incidents(bench: Bench, kind: IncidentKind, count: int) -> list[Incident]:
    seen: list[Incident] = []
    while len(seen) < count:
        seen += [each for each in bench.supervisor.collect_incidents() if each.kind is kind]
        await asyncio.sleep(0.01)
    return seen


def test_the_end_of_envoy_is_seen_at_once_while_a_check_of_it_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envoy_watch, "PROBE_EVERY_S", 0.01)

    async def scenario() -> None:
        envoy = Checked(tmp_path, (0, 0), hangs=1)
        async with watching(envoy) as bench:
            await envoy.checking.wait()
            os.kill(envoy.started[0].pid, signal.SIGKILL)
            (lost,) = await incidents(bench, IncidentKind.PROXY_LOST, 1)
            assert lost.sentence.startswith(f"Envoy (pid {envoy.started[0].pid}) has ended; its log: ")

    asyncio.run(scenario())


def test_requests_that_were_not_checked_are_reported_from_the_first_on_and_for_each_envoy_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        envoy = Checked(tmp_path, (3, 2))
        async with watching(envoy) as bench:
            (first,) = await incidents(bench, IncidentKind.REQUEST_CHECK_FAILED, 1)
            assert first.sentence.startswith("Envoy could not check 3 requests ")
            os.kill(envoy.started[0].pid, signal.SIGKILL)
            (second,) = await incidents(bench, IncidentKind.REQUEST_CHECK_FAILED, 1)
            assert second.sentence.startswith("Envoy could not check 2 requests ")

    asyncio.run(scenario())
