"""An Envoy that ends as soon as it serves is started again with a growing delay."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.unit.fakes import Bench
from tests.unit.samples import envoy_at
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.processes import identify
from themis_triton.core.address import Address
from themis_triton.core.fleet import ProcessId
from themis_triton.daemon.envoy_watch import FIRST_RETRY_S, EnvoyWatch


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
        async with asyncio.timeout(20.0):
            await envoy.fourth.wait()
        watching.cancel()
        await asyncio.wait({watching})
        await envoy.close()
        first, *_, last = envoy.started_at_s
        assert last - first >= FIRST_RETRY_S * (1 + 2 + 4)

    asyncio.run(scenario())
