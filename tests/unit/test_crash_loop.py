"""A server that is lost soon after it began to serve counts as a failed launch: its slot backs off, longer each time."""

from __future__ import annotations

import asyncio

from tests.unit.fakes import Bench
from tests.unit.samples import config, server
from tests.unit.test_tick import Engine
from tests.unit.test_unresponsive import hang
from themis_triton.core.fleet import Phase
from themis_triton.core.record import sentence


def launches(bench: Bench) -> int:
    return sum(line.startswith("launch") for line in bench.log)


def test_a_server_that_crashes_whenever_it_serves_is_launched_ever_more_rarely_and_that_is_told() -> None:
    async def work() -> None:
        bench = Bench()
        engine = Engine(bench, config(slots=1))
        records = []
        for _ in range(110):  # 55 s
            records += await engine.run(5.0)
            bench.launcher.alive.clear()
        assert 3 <= launches(bench) <= 6
        crashes = [incident.sentence for record in records for incident in record.snapshot.incidents]
        waits = [words.partition(": launches on cpu:0 wait for ")[2] for words in crashes]
        assert waits[:4] == ["2 s", "4 s", "8 s", "16 s"]
        assert "has crashed; it had served for 0 s" in crashes[0]
        assert any(crashes[0] in sentence(record) for record in records)
        assert any("cpu:0" in record.snapshot.backing_off for record in records)
        await engine.close()

    asyncio.run(work())


def test_a_server_that_has_served_for_a_minute_ends_the_count() -> None:
    async def work() -> None:
        bench = Bench()
        engine = Engine(bench, config(slots=1))
        await engine.run(5.0, 2)
        for wait_s in (2.0, 4.0):
            bench.launcher.alive.clear()
            await engine.run(5.0)
            assert bench.executor.backoff.active(bench.clock.at_s)["cpu:0"] == bench.clock.at_s + wait_s
            await engine.run(5.0, 10)
        assert [each.phase for each in bench.fleet.all()] == [Phase.SERVING]
        await engine.run(5.0, 121)
        bench.launcher.alive.clear()
        before = launches(bench)
        await engine.run(5.0, 2)
        assert launches(bench) == before + 1, "a crash after a minute is no failed launch"
        await engine.close()

    asyncio.run(work())


def test_one_that_hangs_soon_after_its_launch_counts_too() -> None:
    async def work() -> None:
        bench = Bench(server("first", launched=False))
        engine = Engine(bench, config(slots=1))
        bench.fleet.remove("first")
        await engine.run(5.0, 4)
        (launched,) = bench.fleet.all()
        bench.fleet.put(server("first", launched=False))
        bench.launcher.alive.add("first")
        hang(bench, launched.name)
        records = await engine.run(5.0, 8)
        (ejected,) = [incident.sentence for record in records for incident in record.snapshot.incidents]
        assert "launches on cpu:0 wait for 2 s" in ejected
        await engine.close()

    asyncio.run(work())
