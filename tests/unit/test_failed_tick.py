"""A tick that fails: the status, the journal and the metrics say so, until one succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.fakes import Bench
from tests.unit.samples import config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.exporter import Exporter
from themis_triton.adapters.store.journal import Journal
from themis_triton.adapters.store.reader import reading
from themis_triton.core.fleet import Server
from themis_triton.core.observation import Readings
from themis_triton.daemon.components import Components, build_observer
from themis_triton.daemon.loop import Loop
from themis_triton.daemon.status import StatusBoard
from themis_triton.decide.planner import Planner
from themis_triton.decide.rules import build_rules


def test_a_failed_tick_replaces_the_sentence_and_is_journalled_once_until_a_tick_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(config(), state_directory=tmp_path)

    async def scenario() -> None:
        bench, clock, envoy = Bench(server("a", slot="cpu:0")), SystemClock(), EnvoyProcess(settings.envoy, tmp_path)
        journal = Journal(tmp_path / "journal.sqlite")
        observer = build_observer(settings, clock)
        ports = bench.world, bench.control, bench.launcher
        components = Components(settings, *ports, journal, envoy, EnvoyFiles(settings.envoy), clock, observer)
        board, exporter = StatusBoard(settings, clock.now_s()), Exporter()
        loop = Loop(components, Planner(build_rules(settings)), board, exporter)
        read = bench.observer.read

        async def fails(_servers: Sequence[Server], _resting: Collection[str] = ()) -> Readings:
            raise OverflowError("int too large to convert to float")

        await loop.tick()
        assert board.status().sentence.startswith("no change: ")
        monkeypatch.setattr(bench.observer, "read", fails)
        for _ in range(2):
            assert not await loop.tick()
        status = board.status()
        assert status.sentence == status.tick_error
        assert status.sentence.startswith("the last tick failed, and nothing is changed until one succeeds: OverflowError: int too large")
        assert (status.tick_errors, [event.kinds for event in status.events]) == (2, [("tick_failed",)])
        assert b"themis_tick_errors_total 2.0" in exporter.text()
        monkeypatch.setattr(bench.observer, "read", read)
        await loop.tick()
        assert (board.status().tick_error, board.status().tick_errors) == (None, 2)
        assert board.status().sentence.startswith("no change: ")
        assert journal.flush()
        with reading(tmp_path / "journal.sqlite") as rows:
            assert [row["reason"] for row in rows.ticks(10, changed_only=True)] == ["tick_failed"]
        await bench.executor.cancel()
        await bench.supervisor.close()
        await observer.close()
        await envoy.close()
        journal.close()

    asyncio.run(scenario())
