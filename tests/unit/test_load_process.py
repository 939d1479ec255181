import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.unit.kserve_server import KServe
from themis_triton.commands.load_command import json_line, load_command
from themis_triton.core.errors import ServerError, SettingsError
from themis_triton.load.options import LoadOptions, PipelineLoad, to_json
from themis_triton.load.process import LoadProcess
from themis_triton.load.results import SecondStats
from themis_triton.load.traces import TraceOptions


def options(address: str, duration_s: int = 1, out: Path | None = None) -> LoadOptions:
    pipeline = PipelineLoad("video", ("detector", "classifier"), 200.0, TraceOptions(rate_rps=40, duration_s=duration_s))
    return LoadOptions(address, (pipeline,), out=out, connect_timeout_s=2.0)


def test_a_load_in_a_process_of_its_own(tmp_path: Path) -> None:
    async def run() -> tuple[LoadProcess, list[SecondStats]]:
        async with KServe().serve() as server, LoadProcess(options(server.address, out=tmp_path / "rows.npz")) as load:
            assert psutil.pid_exists(load.pid)
            return load, [second async for second in load.seconds()]

    load, seconds = asyncio.run(run())
    (summary,) = load.report.summaries
    assert (load.duration_s, load.requests) == (1, summary.requests)
    assert summary.failed == 0
    assert sum(second.sent for second in seconds) == summary.requests
    with np.load(tmp_path / "rows.npz") as rows:
        assert rows["video/latency_ms"].size == summary.requests
        assert rows["video/slo_ms"] == 200.0
    assert not psutil.pid_exists(load.pid)


def test_a_load_can_be_asked_to_stop_and_still_reports() -> None:
    async def run() -> LoadProcess:
        async with KServe().serve() as server, LoadProcess(options(server.address, duration_s=600)) as load:
            async for _ in load.seconds():
                load.request_stop()
            return load

    load = asyncio.run(run())
    assert load.report.stopped_early
    assert 0 < load.report.summaries[0].requests < 200


def test_leaving_the_context_ends_the_process() -> None:
    async def run() -> int:
        async with KServe().serve() as server, LoadProcess(options(server.address, duration_s=600)) as load:
            return load.pid

    assert not psutil.pid_exists(asyncio.run(run()))


def test_a_killed_process_is_an_error_with_its_status() -> None:
    async def run() -> None:
        async with KServe().serve() as server, LoadProcess(options(server.address, duration_s=600)) as load:
            os.kill(load.pid, signal.SIGKILL)
            async for _ in load.seconds():
                pass

    with pytest.raises(ServerError, match="status -9"):
        asyncio.run(run())


def test_what_the_process_refuses_is_raised_here_with_its_message() -> None:
    async def run(given: LoadOptions) -> None:
        async with LoadProcess(given):
            pytest.fail("it started")

    with pytest.raises(ServerError, match="no gRPC server answered"):
        asyncio.run(run(replace(options("127.0.0.1:9"), connect_timeout_s=0.3)))
    with pytest.raises(SettingsError, match="HOST:PORT"):
        asyncio.run(run(options("nowhere")))


def test_the_process_ends_when_nobody_reads_any_more() -> None:
    async def run() -> int:
        async with KServe().serve() as server:
            given = to_json(options(server.address, duration_s=600))
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "themis_triton.load", given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(await process.stdout.readline())["kind"] == "started"
            transport = process._transport.get_pipe_transport(1)  # type: ignore[attr-defined]
            transport.close()
            async with asyncio.timeout(20):
                assert await process.stderr.read() == b""
                return await process.wait()

    assert asyncio.run(run()) == ServerError.exit_code


@pytest.fixture
def address() -> Iterator[str]:
    """A server in a thread of its own, for code that owns the main thread's event loop."""
    result: list[str] = []
    started = threading.Event()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with KServe().serve() as server:
            result.append(server.address)
            started.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert started.wait(10)
    yield result[0]
    loop.call_soon_threadsafe(ended.set)
    thread.join(10)
    loop.close()


def test_the_command_prints_a_table_and_one_json_object_last(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    report = load_command(options(address), as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == json.loads(json_line(report))
    summary = json.loads(lines[-1])
    assert {"pipeline", "requests", "failed", "slo_ms", "slo_attainment", "p50_ms", "p99_ms", "errors"} <= set(summary)
    assert summary["failed"] == 0
    assert f"{summary['requests']:,}" in "\n".join(lines[:-1])


def test_the_command_says_where_it_cannot_write(address: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--out"):
        load_command(options(address, out=tmp_path / "nowhere" / "rows.npz"))
