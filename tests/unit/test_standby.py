"""Two sidecars with one state directory: one leads, the other stands by and takes over; never do both act."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from themis_triton.adapters.process_identity import find_process, identify
from themis_triton.adapters.processor_wait import ProcessorWait
from themis_triton.core.errors import EnvironmentCheckError
from themis_triton.daemon import lock
from themis_triton.daemon.control import LOCK_FILE, running_pid
from themis_triton.daemon.lock import BEAT_FILE, Leadership, _LeaderWatch, locked

LEADER = """
import asyncio, sys
from pathlib import Path
from themis_triton.daemon.lock import Leadership

async def lead():
    leadership = Leadership(Path(sys.argv[1]))
    with leadership.held():
        beating = asyncio.create_task(leadership.beat())
        await asyncio.sleep(0)
        print("leads", flush=True)
        await beating

asyncio.run(lead())
"""


@contextmanager
def leader(state: Path) -> Iterator[int]:
    """A process that leads as a sidecar does."""
    with subprocess.Popen([sys.executable, "-c", LEADER, str(state)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        try:
            yield process.pid
        finally:
            process.kill()


async def takes_over(state: Path) -> None:
    """Wait for the lead, and check that nobody else can have it meanwhile."""
    leadership = Leadership(state)
    await asyncio.wait_for(leadership.wait(), 60.0)
    with leadership.held():
        assert running_pid(state) == os.getpid()
        with pytest.raises(EnvironmentCheckError, match=f"in use by the process with pid {os.getpid()}"), locked(state):
            pass


def test_a_leader_that_is_killed_is_followed(tmp_path: Path) -> None:
    async def scenario() -> None:
        with leader(tmp_path) as pid:
            following = asyncio.create_task(takes_over(tmp_path))
            await asyncio.sleep(0)
            assert not following.done()
            os.kill(pid, signal.SIGKILL)
            await following

    asyncio.run(scenario())


def test_a_paused_leader_is_killed_before_its_follower_acts(tmp_path: Path) -> None:
    with leader(tmp_path) as pid:
        identity = identify(pid)
        os.kill(pid, signal.SIGSTOP)
        asyncio.run(takes_over(tmp_path))
        assert find_process(identity) is None


@pytest.mark.parametrize("starved", [False, True])
def test_a_leader_that_runs_without_a_beat_is_killed_unless_it_waits_for_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, starved: bool
) -> None:
    class Waiting(ProcessorWait):
        def since_last_s(self) -> float:
            return 1.0 if starved else 0.0

    monkeypatch.setattr(lock, "ProcessorWait", Waiting)
    own = identify(os.getpid())
    (tmp_path / BEAT_FILE).write_text(f"{own.pid} {own.start_ticks} 7")
    watch = _LeaderWatch(tmp_path / BEAT_FILE)
    result = [watch.poll() for _ in range(30)]
    assert any(result) is not starved
    assert result[:15] == [None] * 15


def test_a_process_that_only_has_the_pid_of_the_last_leader_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a command that holds the lock for a while, after a sidecar that has ended: it never beats."""
    monkeypatch.setattr(lock, "_HUNG_POLLS", 2.0)
    monkeypatch.setattr(lock, "_LATE_POLLS", 1)

    async def scenario() -> None:
        with locked(tmp_path), pytest.raises(TimeoutError):
            await asyncio.wait_for(Leadership(tmp_path).wait(), 1.0)

    (tmp_path / BEAT_FILE).write_text(f"{os.getpid()} 1 7")
    asyncio.run(scenario())
    assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())


def test_without_another_sidecar_one_that_stands_by_leads_at_once(tmp_path: Path) -> None:
    asyncio.run(takes_over(tmp_path))
    assert (tmp_path / LOCK_FILE).read_text() == str(os.getpid())
