"""Ends processes, and waits for their end: the very process, its group, or all with the mark of a state directory."""

from __future__ import annotations

import asyncio
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from themis_triton.adapters.process_identity import find_process
from themis_triton.adapters.processes import OWNER_VARIABLE, owner_mark, remove_shared_memory, shared_memory_prefix
from themis_triton.core.fleet import ProcessId

_POLL_S = 0.03
_KILL_WAIT_S = 20.0
_EMPTY_SCANS = 2
_RESCAN_S = 0.02
_KILL_AGAIN_S = 0.2


async def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait, bounded, until the condition, which runs in a thread, holds; False when the time-out came first."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not await asyncio.to_thread(condition):
        if loop.time() >= deadline_s:
            return False
        await asyncio.sleep(_POLL_S)
    return True


async def wait_for_exit(identity: ProcessId) -> None:
    """Wait until the process has ended, without polling where the kernel can tell; one that was our child is reaped."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError:  # It has ended, or the kernel or a container's filter has no such call.
        await wait_until(lambda: find_process(identity) is None, math.inf)
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        loop.add_reader(descriptor, ended.set)
        if find_process(identity) is not None:
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    find_process(identity)


def kill_process(identity: ProcessId) -> bool:
    """SIGKILL to the very process; returns at once, and whether it still ran. A paused one dies too."""
    process = find_process(identity)
    if process is not None:
        _signal(process, signal.SIGKILL)
    return process is not None


async def stop_process(identity: ProcessId, timeout_s: float) -> bool:
    """SIGTERM, then after the time-out SIGKILL, to the process and whatever else is in its group; returns when they are gone.

    The process must be the leader of its group, as one from `spawn` is.

    Returns:
        True if it ended by itself, False if it had to be killed or some of its group did not go.
    """
    process = find_process(identity)
    if process is not None:
        _signal(process, signal.SIGTERM)
    in_time = await wait_until(lambda: find_process(identity) is None, timeout_s)
    gone = await wait_until(lambda: not _kill_group(identity) and find_process(identity) is None, _KILL_WAIT_S)
    return in_time and gone


def _kill_group(identity: ProcessId) -> list[psutil.Process]:
    """Kill the live members and return them; repeat until there are none, because an ending server may still start a child."""
    members = group_members(identity)
    for member in members:
        _signal(member, signal.SIGKILL)
    return members


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)  # psutil checks the start time before it signals.
    except psutil.NoSuchProcess:
        return


def group_members(identity: ProcessId) -> list[psutil.Process]:
    """Live processes in the group that the process leads; empty when its pid belongs to another process now. Blocking."""
    members = [process for process in psutil.process_iter() if _group_of(process.pid) == identity.pid and _runs(process)]
    return members if all(member.pid != identity.pid for member in members) or find_process(identity) else []


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _parent_of(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def owned_processes(state_directory: Path) -> list[psutil.Process]:
    """Live processes that carry the state directory's mark, this one excepted."""
    mark = owner_mark(state_directory)
    return [process for process, environment in _environments() if environment.get(OWNER_VARIABLE) == mark]


def _environments() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            yield process, process.environ()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # It ended, is a zombie, or belongs to another user.


def stop_everything(state_directory: Path, timeout_s: float = 20.0) -> tuple[int, ...]:
    """End every process that carries the state directory's mark: SIGTERM, then after the time-out SIGKILL. Blocking, bounded.

    Servers' files and shared memory go too; logs stay. For `themis down`, and for an end that leaves nothing behind. Safe to repeat, and
    when there is nothing to end.

    Returns:
        The pids of the stopped processes, in ascending order.

    Raises:
        TimeoutError: a process survived SIGKILL; the message names the pids.
    """
    processes = owned_processes(state_directory)
    pids = {process.pid for process in processes}
    for process in processes:
        if _parent_of(process) not in pids:
            _signal(process, signal.SIGTERM)
    psutil.wait_procs(processes, timeout=timeout_s)
    deadline_s, empty_scans = time.monotonic() + _KILL_WAIT_S, 0
    # A process has no environment for a moment while it executes its program, so that one scan can miss it.
    while empty_scans < _EMPTY_SCANS:
        stragglers = [process for process in owned_processes(state_directory) if _runs(process)]
        if time.monotonic() > deadline_s and stragglers:
            left = [process.pid for process in stragglers]
            raise TimeoutError(f"processes {left} survived SIGKILL. Fix: see `dmesg` and the state of the processes in `ps`")
        for process in stragglers:
            _signal(process, signal.SIGKILL)
        pids |= {process.pid for process in stragglers}
        empty_scans = 0 if stragglers else empty_scans + 1
        psutil.wait_procs(stragglers, timeout=_KILL_AGAIN_S)
        if not stragglers:
            time.sleep(_RESCAN_S)
    shutil.rmtree(state_directory / "servers", ignore_errors=True)
    remove_shared_memory(shared_memory_prefix(state_directory))
    return tuple(sorted(pids))
