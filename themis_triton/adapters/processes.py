"""Processes that outlive the daemon: in sessions of their own, known by pid and start time, discovered by their owner's mark."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from themis_triton.core.fleet import ProcessId

EMULATED_HOST_VARIABLE = "THEMIS_EMULATED_HOST"
"""Servers of several state directories that share emulated devices have the same value; by default a state directory is a host."""
OWNER_VARIABLE = "THEMIS_OWNER"
"""Environment variable of every process that Themis starts: the state directory of the daemon that it belongs to."""

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - Triton's Python backend puts its regions there
_UMASK = threading.Lock()
_START_FIELD = 19
_STAT_BYTES = 4096
_ZOMBIE = "Z"
_POLL_S = 0.03
_KILL_WAIT_S = 20.0
_EMPTY_SCANS = 2
_RESCAN_S = 0.02
_KILL_AGAIN_S = 0.2


def owner_mark(state_directory: Path) -> str:
    """The value of `THEMIS_OWNER` for a state directory."""
    return str(state_directory.resolve())


def short_hash(path: Path) -> str:
    """Eight characters that identify a path."""
    return hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]


def shared_memory_prefix(state_directory: Path) -> str:
    """How the names of the shared-memory regions begin that belong to a state directory's servers, unique on this machine."""
    return f"themis-{short_hash(state_directory)}-"


def remove_shared_memory(prefix: str) -> None:
    """Remove regions that a killed server left behind."""
    for region in _SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)


def spawn(command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> ProcessId:
    """Start a process in a session of its own, its output appended to the log file; it lives on when this process ends.

    Raises:
        OSError: the program cannot be started or the log file cannot be written.
    """
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    closed = [(os.POSIX_SPAWN_CLOSE, descriptor) for descriptor in _inherited()]
    actions = [*closed, (os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
    try:
        with _private():
            pid = os.posix_spawn(
                command[0],
                list(command),
                dict(environment),
                file_actions=actions,
                setsid=True,
                setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
                setsigmask=[],
            )
    finally:
        os.close(log)
        os.close(null)
    return identify(pid)


@contextmanager
def _private() -> Iterator[None]:
    """What a process that is started here creates, shared memory too, is its user's alone. Files of other threads may be so meanwhile."""
    with _UMASK:
        before = os.umask(0o077)
        try:
            yield
        finally:
            os.umask(before)


def _inherited() -> list[int]:
    """Descriptors from this process's own parent, the standard ones excepted: a lock among them would be held while servers run."""
    descriptors = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return [number for number in descriptors if number > 2 and _is_inheritable(number)]


def _is_inheritable(descriptor: int) -> bool:
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False  # It was the listing's own.


def identify(pid: int) -> ProcessId:
    """The identity of a process, running or a zombie, unique since boot.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return ProcessId(pid, _read_stat(pid)[1])


def _read_stat(pid: int) -> tuple[str, int]:
    """A process's state, as one letter, and its start time. ProcessLookupError when there is none. By bare calls: it is asked often."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    try:
        text = os.read(descriptor, _STAT_BYTES)  # its own ProcessLookupError when the process has ended meanwhile
    finally:
        os.close(descriptor)
    # The command name stands in parentheses and may itself hold spaces and parentheses.
    fields = text[text.rindex(b")") + 2 :].split(None, _START_FIELD + 1)
    return chr(fields[0][0]), int(fields[_START_FIELD])


def find_process(identity: ProcessId) -> psutil.Process | None:
    """The very process, if any of its threads still runs; one that has ended and was our child is reaped."""
    try:
        return psutil.Process(identity.pid) if state_of(identity) is not None else None
    except psutil.NoSuchProcess:
        return None


def state_of(identity: ProcessId) -> str | None:
    """The state of the very process, as `ps` shows it (`T`: stopped); None as `find_process`, at a tenth of its cost."""
    try:
        state, start_ticks = _read_stat(identity.pid)
    except ProcessLookupError:
        return None
    if start_ticks != identity.start_ticks or (state == _ZOMBIE and _reaped(identity.pid)):
        return None
    return state


def _reaped(pid: int) -> bool:
    """Whether a zombie is gone, or is somebody else's child; one whose other threads are still ending holds its sockets until then."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


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


def listening_since_s(port: int) -> float | None:
    """When the process began that listens on a port of this machine, in seconds since the epoch; None if it is not visible. Blocking.

    Of several processes, at different addresses, the oldest one.
    """
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        pids = {each.pid for each in listening if each.laddr and each.laddr.port == port}
        # psutil's start times are off by up to a second, because the kernel's boot time is in whole seconds.
        ticks = [identify(pid).start_ticks for pid in pids if pid is not None] if None not in pids else []
        return _boot_s() + min(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None
    except (psutil.Error, ProcessLookupError):
        return None


def _boot_s() -> float:
    return time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)


def has_clients(identity: ProcessId, ports: Collection[int]) -> bool:
    """Whether another process than this one is connected to one of the ports at which the process listens. Blocking."""
    process = find_process(identity)
    if process is None:
        return False
    try:
        own = {(each.laddr, each.raddr) for each in psutil.Process().net_connections("tcp") if each.raddr}
        connections = process.net_connections("tcp")
    except psutil.Error:
        return False  # The process ended meanwhile.
    established = [each for each in connections if each.status == psutil.CONN_ESTABLISHED and each.laddr and each.laddr.port in ports]
    return any((each.raddr, each.laddr) not in own for each in established)


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


def resident_bytes(process: psutil.Process) -> int:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


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
