"""Processes are known by what the kernel says of them, and a group ends to the last member."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from themis_triton.adapters import process_end
from themis_triton.adapters.process_end import group_members, owned_processes, stop_everything, stop_process, wait_for_exit, wait_until
from themis_triton.adapters.process_identity import find_process, identify, state_of
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, spawn
from themis_triton.core.fleet import ProcessId

NO_PROCESS = 2**22 + 1


def shell(script: str, folder: Path) -> ProcessId:
    return spawn(["/bin/sh", "-c", script], dict(os.environ), folder / "log")


def test_start_time_counts_from_boot_and_not_from_the_clock() -> None:
    own = identify(os.getpid())
    since_boot_s = own.start_ticks / os.sysconf("SC_CLK_TCK")
    assert since_boot_s == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=0.1)


def test_a_process_is_found_by_pid_and_start_time_together(tmp_path: Path) -> None:
    sleeper = shell("exec sleep 60", tmp_path)
    try:
        result = find_process(sleeper)
        assert result is not None
        assert result.pid == sleeper.pid
        assert find_process(replace(sleeper, start_ticks=sleeper.start_ticks + 1)) is None
        os.kill(sleeper.pid, signal.SIGSTOP)
        assert asyncio.run(wait_until(lambda: state_of(sleeper) == "T", 10.0))
        os.kill(sleeper.pid, signal.SIGCONT)
    finally:
        assert asyncio.run(stop_process(sleeper, 5.0))
    assert find_process(sleeper) is None
    with pytest.raises(ProcessLookupError):
        identify(NO_PROCESS)


def test_children_started_while_the_group_is_killed_end_too(tmp_path: Path) -> None:
    breeder = shell('trap "" TERM; for i in $(seq 3000); do sleep 20 & echo born; done; sleep 20', tmp_path)
    log = tmp_path / "log"

    async def breed_and_stop() -> bool:
        assert await wait_until(lambda: log.stat().st_size > 0, 10.0)
        return await stop_process(breeder, 0.1)

    assert not asyncio.run(breed_and_stop()), "it did not end by itself"
    assert group_members(breeder) == []
    assert find_process(breeder) is None


def test_a_lock_of_the_parents_is_not_handed_down(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as lock:
        os.set_inheritable(lock.fileno(), True)
        process = spawn(["/bin/sh", "-c", "sleep 60; :"], os.environ, tmp_path / "log")
        try:
            targets = [str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
        finally:
            asyncio.run(stop_process(process, 5.0))
    assert str(tmp_path / "lock") not in targets
    assert str(tmp_path / "log") in targets


def test_everything_with_the_mark_ends(tmp_path: Path) -> None:
    script = 'trap "" TERM; for i in $(seq 3000); do sleep 20 & echo born; done; sleep 20'
    environment = {**os.environ, OWNER_VARIABLE: owner_mark(tmp_path)}
    breeder = spawn(["/bin/sh", "-c", script], environment, tmp_path / "log")
    pids = stop_everything(tmp_path, timeout_s=0.1)
    assert breeder.pid in pids
    assert owned_processes(tmp_path) == []
    assert find_process(breeder) is None


def test_a_process_that_ends_while_all_are_ended_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, OWNER_VARIABLE: owner_mark(tmp_path)}
    brief = spawn(["/bin/sleep", "60"], environment, tmp_path / "log")

    def found_and_ended(state_directory: Path) -> list[psutil.Process]:
        found = owned_processes(state_directory)
        for process in found:
            process.kill()
            os.waitpid(process.pid, 0)
        return found

    monkeypatch.setattr(process_end, "owned_processes", found_and_ended)
    assert stop_everything(tmp_path, timeout_s=0.1) == (brief.pid,)
    assert find_process(brief) is None


def test_a_process_runs_until_its_last_thread_has_ended_and_is_reaped_then(tmp_path: Path) -> None:
    """Its sockets are open until then, though its first thread is a zombie already."""
    code = "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(1.0,)).start(); ctypes.CDLL(None).pthread_exit(None)"

    async def scenario() -> None:
        child = spawn([sys.executable, "-c", code], dict(os.environ), tmp_path / "log")
        assert await wait_until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, 10.0)
        assert find_process(child) is not None
        await asyncio.wait_for(wait_for_exit(child), 10.0)
        assert find_process(child) is None
        assert not psutil.pid_exists(child.pid)

    asyncio.run(scenario())
