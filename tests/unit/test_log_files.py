"""Logs of servers are bounded in size and number."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

from tests.unit.fakes import Bench
from tests.unit.samples import config, server
from themis_triton.adapters.clock import SystemClock
from themis_triton.adapters.envoy.files import EnvoyFiles
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.log_files import bound_logs, earlier_log
from themis_triton.adapters.store.journal import Journal
from themis_triton.core.retention import RetentionConfig
from themis_triton.daemon.components import Components, build_observer
from themis_triton.daemon.housekeeping import bound_logs_once


def write(log: Path, text: bytes, age: int = 0) -> Path:
    log.write_bytes(text)
    os.utime(log, ns=(10**18 - age * 10**9,) * 2)
    return log


def test_a_large_log_begins_anew_for_the_process_that_appends_to_it(tmp_path: Path) -> None:
    log, small = tmp_path / "a.log", write(tmp_path / "b.log", b"x" * 100)
    with log.open("ab", buffering=0) as process:
        for number in range(30):
            process.write(b"line %03d\n" % number)
        bound_logs(tmp_path, {log, small}, 100, 0)
        process.write(b"after\n")
        assert log.read_bytes() == b"after\n"
        assert earlier_log(log).read_bytes() == b"".join(b"line %03d\n" % number for number in range(30))[-100:]
        assert earlier_log(log).stat().st_mode & 0o777 == 0o600
        assert small.read_bytes() == b"x" * 100
        process.write(b"y" * 150)
        bound_logs(tmp_path, {log, small}, 100, 0)
        assert (log.read_bytes(), earlier_log(log).read_bytes()) == (b"", b"y" * 100)


def test_the_newest_logs_of_servers_that_are_gone_stay(tmp_path: Path) -> None:
    logs = [write(tmp_path / f"{number}.log", b"x", age=number) for number in range(6)]
    write(earlier_log(logs[5]), b"older lines")
    bound_logs(tmp_path, {logs[4]}, 100, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.log", "1.log", "4.log"]


def test_the_sidecar_keeps_the_logs_of_its_servers_and_envoy(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for number, name in enumerate(("old", "older", "mine", "envoy")):
        write(logs / f"{name}.log", b"x", age=number)
    settings = replace(config(), state_directory=tmp_path, retention=RetentionConfig(max_old_logs=1))

    async def scenario() -> None:
        bench, clock = Bench(replace(server("mine"), log_file=str(logs / "mine.log"))), SystemClock()
        journal, observer = Journal(tmp_path / "journal.sqlite"), build_observer(settings, clock)
        envoy = EnvoyProcess(settings.envoy, tmp_path)
        ports = bench.world, bench.control, bench.launcher
        await bound_logs_once(Components(settings, *ports, journal, envoy, EnvoyFiles(settings.envoy), clock, observer))
        await observer.close()
        await envoy.close()
        journal.close()

    asyncio.run(scenario())
    assert sorted(path.name for path in logs.iterdir()) == ["envoy.log", "mine.log", "old.log"]


def test_a_log_that_cannot_be_opened_is_reported_and_stops_no_other(tmp_path: Path) -> None:
    first, last = (write(tmp_path / f"{name}.log", b"x" * 200) for name in ("a", "c"))
    (tmp_path / "b.log").mkdir()
    (tmp_path / "b.log" / "large").write_bytes(b"")
    (tmp_path / "d.log").symlink_to(tmp_path / "nowhere")
    bound = 100 if (tmp_path / "b.log").stat().st_size > 100 else 1
    (failure,) = bound_logs(tmp_path, {first, last, tmp_path / "b.log"}, bound, 0)
    assert isinstance(failure, IsADirectoryError)
    assert [log.stat().st_size for log in (first, last)] == [0, 0]


def test_no_directory_is_no_error(tmp_path: Path) -> None:
    bound_logs(tmp_path / "logs", (), 100, 0)
    assert not (tmp_path / "logs").exists()
