"""A part that only waits for a processor is not taken for one that hangs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.unit.samples import server
from tests.unit.test_envoy_admin import configured
from themis_triton.adapters.envoy import process as envoy_process
from themis_triton.adapters.envoy import serving_check
from themis_triton.adapters.envoy.probe import Answer
from themis_triton.adapters.envoy.process import EnvoyProcess
from themis_triton.adapters.envoy.render import node_id
from themis_triton.adapters.envoy.serving_check import ServingCheck
from themis_triton.adapters.process_end import kill_process, wait_until
from themis_triton.adapters.process_identity import identify
from themis_triton.adapters.processes import spawn
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.adapters.triton import model_control
from themis_triton.adapters.triton.model_control import TritonModelControl
from themis_triton.core.errors import ServerError
from themis_triton.core.fleet import ProcessId

BUSY = (sys.executable, "-c", "while True: pass")


class Waiting(ProcessorWait):
    """A process that has waited all the time since it was asked last, and that for `SECONDS`."""

    SECONDS = 3.0

    def since_last_s(self) -> float:
        return self.SECONDS


@contextmanager
def on_one_processor(folder: Path, loops: int) -> Iterator[list[ProcessId]]:
    """Busy loops that share one processor."""
    one = {min(os.sched_getaffinity(0))}
    started = [spawn(BUSY, dict(os.environ), folder / "log") for _ in range(loops)]
    try:
        for each in started:
            os.sched_setaffinity(each.pid, one)
        yield started
    finally:
        for each in started:
            kill_process(each)


def test_a_process_that_gets_no_processor_waits_and_one_that_is_stopped_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)  # this process may have to wait itself
    with on_one_processor(tmp_path, 4) as (starved, stopped, *_):
        psutil.Process(stopped.pid).suspend()
        assert asyncio.run(wait_until(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED, 10.0))
        waits = [ProcessorWait(starved), ProcessorWait(stopped), ProcessorWait(None)]
        waited_s = [0.0, 0.0, 0.0]

        def have_waited() -> bool:
            waited_s[:] = [before + wait.since_last_s() for before, wait in zip(waited_s, waits, strict=True)]
            return waited_s[0] > 0.5

        assert asyncio.run(wait_until(have_waited, 30.0))
        assert waited_s[1:] == [0.0, 0.0]


def test_an_unknown_process_is_not_asked_and_this_one_is() -> None:
    own = identify(os.getpid())
    assert set(ProcessorWait(own)._waited_ns) == {own.pid}
    assert set(ProcessorWait(replace(own, start_ticks=own.start_ticks + 1))._waited_ns) == {own.pid}


@pytest.mark.parametrize(("seconds", "is_hung"), [(0.0, True), (3.0, False)])
def test_an_envoy_that_waits_for_a_processor_is_not_killed_for_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, is_hung: bool
) -> None:
    """A new one would take far longer to answer on the same machine, and meanwhile requests would fail."""

    async def silent(*_: object) -> Answer:
        return Answer.SILENT

    async def faults() -> list[str | None]:
        check, found = ServingCheck(), []
        for _ in range(20):
            found.append(await check.find_fault(configured(tmp_path, 1), identify(os.getpid())))
            check._probed_at_s -= 3.0
        return found

    monkeypatch.setattr(serving_check, "probe_listeners", silent)
    monkeypatch.setattr(serving_check, "ProcessorWait", Waiting)
    monkeypatch.setattr(Waiting, "SECONDS", seconds)
    assert any(asyncio.run(faults())) is is_hung


@pytest.mark.parametrize(("seconds", "in_time"), [(0.0, False), (3.0, True)])
def test_an_envoy_that_starts_is_waited_for_while_it_waits_for_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, in_time: bool
) -> None:
    """Its admin address may be silent meanwhile, and its time to start be over."""

    class Admin:
        asked = 0

        async def node_id(self) -> str:
            self.asked += 1
            if self.asked < 4:
                raise ServerError("did not answer")
            return node_id(tmp_path)

        async def is_ready(self) -> bool:
            return True

    async def becomes_ready() -> bool:
        envoy = EnvoyProcess(configured(tmp_path, 1), tmp_path, start_timeout_s=0.0)
        await envoy.close()
        monkeypatch.setattr(envoy, "_admin", Admin())
        return await envoy._becomes_ready(identify(os.getpid()))

    monkeypatch.setattr(envoy_process, "ProcessorWait", Waiting)
    monkeypatch.setattr(Waiting, "SECONDS", seconds)
    if in_time:
        assert asyncio.run(becomes_ready())
    else:
        with pytest.raises(ServerError, match="was not ready within 0 s"):
            asyncio.run(becomes_ready())


@pytest.mark.parametrize(("seconds", "answers"), [(0.0, False), (3.0, True)])
def test_a_server_that_waits_for_a_processor_is_slow_and_not_hung(monkeypatch: pytest.MonkeyPatch, seconds: float, answers: bool) -> None:
    async def answered() -> bool:
        control = TritonModelControl()
        try:
            return await control.answers(server("a"))  # nothing listens at its address
        finally:
            await control.close()

    monkeypatch.setattr(model_control, "ProcessorWait", Waiting)
    monkeypatch.setattr(Waiting, "SECONDS", seconds)
    assert asyncio.run(answered()) is answers
